"""The processes that torchrun has started, as one process group; one process without it is a group of one."""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from torch_models.errors import UserError

_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_TIMEOUT = timedelta(minutes=5)


class Ranks(NamedTuple):
    """This process among all."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    in_node: int = 1  # processes of this node

    @property
    def nodes(self) -> int:
        """Nodes with as many processes each."""
        return self.world // self.in_node

    def shared(self, value: Any) -> Any:
        """The value of rank 0, on every rank."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]


@contextlib.contextmanager
def joined_ranks(device_kind: str) -> Iterator[Ranks]:
    """Join the process group that torchrun's environment describes, with NCCL on CUDA devices and gloo on CPUs.

    Raises UserError if the environment is not complete, or the nodes do not have as many processes each.
    """
    given = [name for name in _OF_TORCHRUN if name in os.environ]
    if "RANK" not in given and "WORLD_SIZE" not in given:
        yield Ranks()
        return
    if missing := [name for name in _OF_TORCHRUN if name not in given]:
        raise UserError(f"the environment has {given[0]} but no {missing[0]}: start the processes with torchrun")
    numbers = [os.environ[name] for name in _OF_TORCHRUN[:4]]
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise UserError(f"the environment's {', '.join(_OF_TORCHRUN[:4])} must be whole numbers, but are {numbers}")
    rank, world, local_rank, in_node = map(int, numbers)
    if in_node < 1 or world % in_node:
        raise UserError(f"{world} ranks with {in_node} on this node: start as many processes on each node")
    if device_kind == "cuda":
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if device_kind == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield Ranks(rank, world, local_rank, in_node)
    finally:
        dist.destroy_process_group()
