"""Published memory of training runs, and what this project says for the same settings.

`configs/published_memory.json` has the figures with their sources. Each row whose settings are known and measured here
is run as the command would run it; every other row says why it is not. Nothing is fitted to the figures.
"""

from collections.abc import Mapping
from functools import cache
from typing import Literal

import msgspec

from counting.analysis import Analysis
from counting.cost.fits import worst_rank
from counting.published.rows import Record, RepeatedRow, analysis_or_reason, check_rows, read_records
from counting.records.tidy import Tidy
from counting.setup import Setup
from counting.step.memory import StepMemory
from torch_models.layout import Layout

BYTES_PER_GIB = 2**30

# Peaks over all ranks: of the bytes in blocks of the caching allocator, or of the bytes that it reserves.
MemoryQuantity = Literal["allocated", "reserved"]


class StatedMemory(Record, frozen=True, kw_only=True):
    """One figure as it is printed."""

    quantity: MemoryQuantity
    gib: float


class PublishedMemory(RepeatedRow, frozen=True, kw_only=True):
    """One run as published."""

    gpu: str
    stated: tuple[StatedMemory, ...]
    note: str | None = None


class MemoryFigure(msgspec.Struct, frozen=True, kw_only=True):
    """A stated figure, and ours, least and most."""

    quantity: MemoryQuantity
    stated_gib: float
    low_bytes: int
    high_bytes: int
    relative_difference: float  # the middle of low and high / stated - 1


class ExaminedMemory(Tidy, frozen=True, kw_only=True):
    """A published row with this project's figures; none of a row that is not run, for the reason `not_run`."""

    name: str
    source: str
    gpu: str
    stated: tuple[StatedMemory, ...]
    config: str | None
    setup: Setup | None  # resolved
    layout: Layout | None
    figures: tuple[MemoryFigure, ...]
    not_run: str | None
    note: str | None


@cache
def load_published_memory() -> tuple[PublishedMemory, ...]:
    """The rows of `configs/published_memory.json`, in file order; the file is read on the first call."""
    rows = read_records("published_memory.json", tuple[PublishedMemory, ...])
    check_rows(rows)
    return rows


def examine_memory(row: PublishedMemory) -> ExaminedMemory:
    """The row with the figures that its settings give; a setting that is refused here is its `not_run`."""
    analysis, not_run = analysis_or_reason(row, reserved=True)
    return ExaminedMemory(
        name=row.name,
        source=row.source,
        gpu=row.gpu,
        stated=row.stated,
        config=None if row.run is None else row.run.config,
        setup=None if analysis is None else analysis.setup,
        layout=None if analysis is None else analysis.layout,
        figures=() if analysis is None else _figures(row.stated, analysis),
        not_run=not_run,
        note=row.note,
    )


def _figures(stated: tuple[StatedMemory, ...], analysis: Analysis) -> tuple[MemoryFigure, ...]:
    worst = worst_rank(analysis)
    memory = analysis.memory if worst is None else worst.memory
    assert memory is not None
    ours = _ranges(memory)
    return tuple(_memory_figure(figure, *ours[figure.quantity]) for figure in stated if figure.quantity in ours)


def _ranges(memory: StepMemory) -> Mapping[MemoryQuantity, tuple[int, int]]:
    """What this project has of each quantity, least and most."""
    allocated = memory.peak_bytes
    if memory.reserved_bytes is None or memory.reserved_parts is None:
        return {"allocated": (allocated, allocated)}
    allocated = memory.reserved_parts.peak_allocated_bytes  # with the workspaces of kernels, as torch counts
    return {"allocated": (allocated, allocated), "reserved": memory.reserved_bytes}


def _memory_figure(stated: StatedMemory, low: int, high: int) -> MemoryFigure:
    return MemoryFigure(
        quantity=stated.quantity,
        stated_gib=stated.gib,
        low_bytes=low,
        high_bytes=high,
        relative_difference=(low + high) / 2 / BYTES_PER_GIB / stated.gib - 1,
    )
