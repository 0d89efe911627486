"""The seconds of ops on one GPU: by FLOPs or by bytes, whichever takes longer, and a launch."""

from collections.abc import Iterable

import msgspec

from counting.cost.step_time.machine import Machine
from counting.work import Op


class ComputeSeconds(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of ops by what they are; `launches` are the gaps between kernels, of all of them."""

    products: float = 0.0  # grouped ones too
    attention: float = 0.0
    memory: float = 0.0
    launches: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.products + self.attention + self.memory + self.launches

    def __add__(self, other: "ComputeSeconds") -> "ComputeSeconds":
        return ComputeSeconds(
            products=self.products + other.products,
            attention=self.attention + other.attention,
            memory=self.memory + other.memory,
            launches=self.launches + other.launches,
        )


def seconds_of_op(op: Op, machine: Machine) -> float:
    """Seconds of one call of `op`, without its launch."""
    raise NotImplementedError


def seconds_of_ops(ops: Iterable[Op], machine: Machine) -> ComputeSeconds:
    """Seconds of all calls of all `ops`, one after another."""
    raise NotImplementedError
