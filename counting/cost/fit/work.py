"""The parts of a job on the cores that this process may use."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Part = TypeVar("_Part")
_Done = TypeVar("_Done")


def in_threads(work: Callable[[_Part], _Done], parts: Sequence[_Part]) -> list[_Done]:
    """What `work` returns for each part, in order. Threads are enough: numpy's loops run beside each other.

    An interrupt ends the parts that run, each a second or two, and starts no other.
    """
    threads = min(cores_here(), len(parts))
    if threads <= 1:
        return [work(part) for part in parts]
    pool = ThreadPoolExecutor(threads)
    try:
        return list(pool.map(work, parts))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def cores_here() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
