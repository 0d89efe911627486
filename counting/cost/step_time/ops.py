"""The seconds of ops on one GPU: by FLOPs or by bytes, whichever takes longer, and a launch."""

from collections.abc import Iterable

import msgspec

from counting.cost.step_time.attention import attention_rate
from counting.cost.step_time.machine import Machine
from counting.cost.step_time.products import grouped_rate, product_rate
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
    """Seconds of one call of `op`, without its launch: max(computed FLOPs / rate, bytes / bandwidth).

    The roofline of Williams et al. 2009 ("Roofline: An Insightful Visual Performance Model", CACM 52 (4)).
    """
    moving = (op.bytes_read + op.bytes_written) / machine.bytes_per_s
    if not op.computed_flops:
        return moving
    return max(op.computed_flops / _rate(op, machine), moving)


def seconds_of_ops(ops: Iterable[Op], machine: Machine) -> ComputeSeconds:
    """Seconds of all calls of all `ops`, one after another."""
    seconds = {"product": 0.0, "grouped_product": 0.0, "attention": 0.0, "memory": 0.0}
    calls = 0
    for op in ops:
        seconds[op.kind] += op.calls * seconds_of_op(op, machine)
        calls += op.calls
    return ComputeSeconds(
        products=seconds["product"] + seconds["grouped_product"],
        attention=seconds["attention"],
        memory=seconds["memory"],
        launches=calls * machine.launch_seconds,
    )


def _rate(op: Op, machine: Machine) -> float:
    if op.kind == "attention":
        return attention_rate(op, machine)
    if op.kind == "grouped_product":
        return grouped_rate(op, machine)
    return product_rate(op, machine)
