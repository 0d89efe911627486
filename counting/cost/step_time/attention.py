"""The rate of a fused attention kernel, from a table of kernels, head sizes, lengths and directions."""

from math import log2

from counting.cost.step_time.machine import DEFAULT_ATTENTION_KERNEL, AttentionSpeed, Machine
from counting.cost.step_time.products import format_of, interpolated_rate
from counting.work import Op

# What is in torch's name of an op -> the kernel of the table; those of other ops take torch's default.
KERNELS_BY_NAME = {"cudnn": "cuDNN"}


def attention_rate(op: Op, machine: Machine) -> float:
    """Computed FLOP/s of an op of shape (sequences, query heads, queries, keys, head size of keys, that of values).

    The rate of the kernel that the machine is set to, else of the one that the op names, else of the first in the
    table; at the measured head size nearest in ratio, and by the number of keys linear in its logarithm between two
    measured lengths, outside them as at the nearest. Where the head sizes of keys and values differ, as in multi-head
    latent attention (192 and 128), their mean counts: half of the FLOPs go with each. Formats of 32 bits are as much
    slower as products are. Without a table, attention is as fast as products.
    """
    slope = machine.products[format_of(op.dtype)] / machine.products["16-bit"]
    if not machine.attention:
        return machine.products["16-bit"] * slope
    _sequences, _heads, _queries, keys, key_size, value_size = op.shape
    rows = _of_kernel(machine, op.name)
    size = nearest_head_size([row.head_size for row in rows], (key_size + value_size) / 2)
    ordered = sorted((row for row in rows if row.head_size == size), key=lambda row: row.sequence_length)
    rates = [(row.sequence_length, row.backward if op.backward else row.forward) for row in ordered]
    return interpolated_rate(rates, keys) * slope


def nearest_head_size(measured: list[int], size: float) -> int:
    """The one of `measured` that is nearest to `size` in ratio, the smaller of two that are equally near."""
    return min(sorted(measured), key=lambda found: abs(log2(found / size)))


def _of_kernel(machine: Machine, name: str) -> list[AttentionSpeed]:
    named = next((kernel for part, kernel in KERNELS_BY_NAME.items() if part in name), DEFAULT_ATTENTION_KERNEL)
    for kernel in (machine.attention_kernel, named, machine.attention[0].kernel):
        rows = [row for row in machine.attention if row.kernel == kernel]
        if rows:
            return rows
    raise AssertionError("the first row's kernel has a row")
