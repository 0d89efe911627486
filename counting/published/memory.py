"""Published memory of training runs, and what this project says for the same settings.

`configs/published_memory.json` has the figures with their sources. Each row whose settings are known and measured here
is run as the command would run it; every other row says why it is not. Nothing is fitted to the figures.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

import msgspec

from counting.analysis import Analysis, analyze
from counting.cost.fits import worst_rank
from counting.published.runs import Record
from counting.setup import Setup
from counting.step.memory import StepMemory
from torch_models.errors import UserError
from torch_models.fields.bundled import bundled_data
from torch_models.layout import Layout

BYTES_PER_GIB = 2**30

# Peaks over all ranks: of the bytes in blocks of the caching allocator, or of the bytes that it reserves.
MemoryQuantity = Literal["allocated", "reserved"]


class MemorySettings(Record, frozen=True, kw_only=True):
    """What the run was run with: a config of this project, some of its fields replaced, and fields of two structs."""

    config: str
    config_fields: dict[str, Any] = msgspec.field(default_factory=dict)
    setup: dict[str, Any]  # of `Setup`
    layout: dict[str, Any] = msgspec.field(default_factory=dict)  # of `Layout`; empty on one device

    def analyze(self) -> Analysis:
        """Measure it. Raises `UserError` where this project refuses a setting."""
        fields = msgspec.json.decode((bundled_data() / f"{self.config}_config.json").read_bytes())
        layout = Layout(**self.layout) if self.layout else None
        return analyze({**fields, **self.config_fields}, Setup(**self.setup), layout=layout, reserved=True)


class StatedMemory(Record, frozen=True, kw_only=True):
    """One figure as it is printed."""

    quantity: MemoryQuantity
    gib: float


class PublishedMemory(Record, frozen=True, kw_only=True):
    """One run as published; `not_run` says why it cannot be compared, where there is no `run`."""

    name: str
    source: str
    gpu: str
    stated: tuple[StatedMemory, ...]
    run: MemorySettings | None = None
    not_run: str | None = None
    note: str | None = None


class MemoryFigure(msgspec.Struct, frozen=True, kw_only=True):
    """A stated figure, and ours, least and most."""

    quantity: MemoryQuantity
    stated_gib: float
    low_bytes: int
    high_bytes: int
    relative_difference: float  # the middle of low and high / stated - 1


class ExaminedMemory(msgspec.Struct, frozen=True, kw_only=True):
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
    text = (bundled_data() / "published_memory.json").read_bytes()
    rows = msgspec.json.decode(text, type=tuple[PublishedMemory, ...])
    assert len({row.name for row in rows}) == len(rows)
    assert all((row.run is None) != (row.not_run is None) for row in rows)
    return rows


def examine_memory(row: PublishedMemory) -> ExaminedMemory:
    """The row with the figures that its settings give; a setting that is refused here is its `not_run`."""
    analysis, not_run = None, row.not_run
    if row.run is not None:
        try:
            analysis = row.run.analyze()
        except UserError as error:
            not_run = str(error)
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
