"""Times calls on one device, each with the time to wait until the device has finished."""

import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

FEWEST_TIMINGS = 3
_SHORTEST_TIMING = 2e-3  # seconds: calls that are shorter are timed several at once


class Timed(NamedTuple):
    """Seconds of one call."""

    fastest: float
    median: float


def synchronize(device: torch.device) -> None:
    """Wait until `device` has finished what was called."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Seconds of one of `calls` calls in a row."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def time_calls(function: Callable[[], object], device: torch.device, seconds: float) -> Timed:
    """Time calls of `function` for about `seconds`, at least `FEWEST_TIMINGS` times, after one that is not timed."""
    until = time.perf_counter() + seconds
    function()
    calls = max(1, math.ceil(_SHORTEST_TIMING / max(seconds_of(function, device), 1e-9)))
    timings: list[float] = []
    while len(timings) < FEWEST_TIMINGS or time.perf_counter() < until:
        timings.append(seconds_of(function, device, calls))
    return Timed(min(timings), statistics.median(timings))
