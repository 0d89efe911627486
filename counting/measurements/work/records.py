"""Records of single ops, with the serial numbers of the storages that they read and write; and their sum."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Literal, NamedTuple

from msgspec import structs

from counting.work import Op, OpKind

Region = tuple[object, ...]  # equal for tensors that view the same numbers of one storage


class Touch(NamedTuple):
    """The part of a storage that an op reads or writes; the serial number is the tracker's, or negative."""

    serial: int
    region: Region
    bytes: int
    storage_bytes: int  # of the whole storage


RawKind = OpKind | Literal["collective"]


class RawOp(NamedTuple):
    """One op as it was dispatched, or a collective. Views and allocations are no ops."""

    kind: RawKind
    name: str
    reads: tuple[Touch, ...]
    writes: tuple[Touch, ...]  # a tensor that is changed in place is in both
    flops: int = 0
    computed_flops: int = 0
    dtype: str = "bfloat16"
    shape: tuple[int, ...] = ()
    backward: bool = False
    is_complex: bool = False  # reads or writes complex numbers


class RawStretch(NamedTuple):
    """The ops between two moments, in order, and the serial numbers of the storages that are alive at its end."""

    ops: Sequence[RawOp]
    alive_after: Collection[int]


Summarise = Callable[[RawStretch], tuple[Op, ...]]


def touched_bytes(touches: Iterable[Touch]) -> int:
    """The bytes of the distinct numbers that are touched: each region once, and no storage more than once."""
    of_storages: dict[int, tuple[int, dict[Region, int]]] = {}
    for touch in touches:
        size, regions = of_storages.get(touch.serial, (0, {}))
        regions[touch.region] = max(touch.bytes, regions.get(touch.region, 0))
        of_storages[touch.serial] = max(size, touch.storage_bytes), regions
    return sum(min(size, sum(regions.values())) for size, regions in of_storages.values())


def summarise(stretch: RawStretch) -> tuple[Op, ...]:
    """Every op by its own bytes, as it runs without a compiler; equal ones together, in the order of the first."""
    return total(op_of(raw) for raw in stretch.ops if raw.kind != "collective")


def op_of(raw: RawOp) -> Op:
    """The op with the bytes of what it touches; not for collectives, whose bytes are traffic."""
    assert raw.kind != "collective"
    return Op(
        kind=raw.kind,
        name=raw.name,
        flops=raw.flops,
        computed_flops=raw.computed_flops,
        bytes_read=touched_bytes(raw.reads),
        bytes_written=touched_bytes(raw.writes),
        dtype=raw.dtype,
        shape=raw.shape,
        backward=raw.backward,
    )


def total(ops: Iterable[Op], times: int = 1) -> tuple[Op, ...]:
    """`ops`, `times` each, with equal ones as one with several calls, in the order of the first."""
    calls: Counter[Op] = Counter()
    for op in ops:
        calls[_once(op)] += op.calls * times
    return tuple(_called(op, number) for op, number in calls.items())


def _once(op: Op) -> Op:
    return op if op.calls == 1 else _called(op, 1)


def _called(op: Op, calls: int) -> Op:
    return op if op.calls == calls else structs.replace(op, calls=calls)
