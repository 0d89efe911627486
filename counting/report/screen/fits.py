"""On which GPUs a training step fits, and what would make it fit."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from counting.report.format import gib, integer
from counting.report.screen.lines import Lines, listed
from counting.setup import Setup

if TYPE_CHECKING:
    from counting.analysis import Analysis
    from counting.fits import Fit, Remedy


def fits_screen(lines: Lines, analysis: "Analysis", fits: "Sequence[Fit]") -> None:
    """One device of each GPU: by how much the step fits, or is too large, and what would make it fit."""
    lines.heading(f"Does a training step of {analysis.name} fit on one device? In GiB:")
    rows: list[tuple[str, ...]] = [("GPU", "needs", "has", "left", "fits", "then needs")]
    for fit in fits:
        cheapest = fit.remedies[0] if fit.remedies else None
        rows.append(
            (
                fit.gpu,
                *(_number(size) for size in (fit.needed_bytes, fit.capacity_bytes, fit.spare_bytes)),
                "yes" if fit.fits else f"with {remedy_in_words(cheapest, analysis.setup)}" if cheapest else "no",
                _number(cheapest.needed_bytes) if cheapest else "",
            )
        )
    lines.columns(rows)
    contexts: dict[str, list[str]] = {}
    for fit in fits:
        context = fit.needed_bytes - fit.allocated_bytes
        contexts.setdefault(gib(context) if context else "", []).append(fit.gpu)
    unknown = contexts.pop("", [])
    known = ", ".join(f"{size} on {listed(gpus)}" for size, gpus in contexts.items())
    text = f"what is allocated at the worst moment{f', and the CUDA context: {known}' if known else ''}"
    left_out = "the allocator's reserve" + (f", and of {listed(unknown)} the context" if unknown else "")
    lines.fact("needs", f"{text}; left out: {left_out}")


def remedy_in_words(remedy: "Remedy", setup: Setup) -> str:
    """What is to be run otherwise than in `setup`."""
    changes = [] if remedy.recompute == setup.recompute else [f"recompute {remedy.recompute}"]
    if remedy.loss_chunk != setup.loss_chunk and remedy.loss_chunk is not None:
        changes.append(f"loss chunk {integer(remedy.loss_chunk)}")
    return ", ".join(changes)


def fits_in_words(fits: "Sequence[Fit]", setup: Setup, *, most: int | None = None) -> str:
    """The GPUs on which the step fits as it is, then those of each remedy; of long lists at most so many names."""
    groups: dict[str, list[str]] = {}
    for fit in fits:
        if fit.fits:
            groups.setdefault("", []).append(fit.gpu)
    for fit in fits:
        if not fit.fits and fit.remedies:
            groups.setdefault(f"with {remedy_in_words(fit.remedies[0], setup)}: ", []).append(fit.gpu)
    found = sum(map(len, groups.values()))
    if not found and most is not None:
        return f"none of {len(fits)} GPUs"
    if not found:
        largest = max(fits, key=lambda fit: fit.capacity_bytes)
        return f"none: {largest.gpu} has {gib(largest.capacity_bytes)}; it must be sharded over several"
    parts = [f"{how}{_names(names, most)}{'' if how else ' as it is'}" for how, names in groups.items()]
    others = len(fits) - found
    return "; ".join(parts) + (f"; none of the other {others}" if others and most is None else "")


def _number(size: int) -> str:
    return gib(size).removesuffix(" GiB")


def _names(names: Sequence[str], most: int | None) -> str:
    if most is None or len(names) <= most + 1:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
