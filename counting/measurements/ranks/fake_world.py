"""A process group of any number of ranks in which this process is one rank, and no other process exists."""

import contextlib
import sys
from collections.abc import Iterator

import torch.distributed as dist

from counting.measurements.ranks.stand_ins import replaced, stand_ins, without_caches_of_dtensor


@contextlib.contextmanager
def fake_world(ranks: int, rank: int = 0) -> Iterator[None]:
    """Context in which torch's default process group has `ranks` ranks, and this process is `rank`.

    Its collectives send nothing and return at once, with results of the right shape. On exit, also by an error, the
    group is destroyed. The process must not have a group.
    """
    assert not dist.is_initialized(), "this process has a process group"
    # torch's hook, which begins each line of an uncaught error with the rank, would outlive the group.
    with replaced(sys, "excepthook", sys.excepthook), stand_ins(), without_caches_of_dtensor():
        dist.init_process_group("fake", rank=rank, world_size=ranks)
        try:
            yield
        finally:
            dist.destroy_process_group()
