"""The GPUs on which a training step fits, and the changes that would make it fit, on the first screen."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from counting.cost.fits import worst_rank
from counting.report.format import gib, integer, recompute_in_words
from counting.report.screen.lines import Lines, listed
from counting.report.screen.time import time_rows
from counting.setup import Setup
from counting.step.memory import TAKES_LONG_NOTE, WORST_REPLAYED_NOTE
from counting.step.notes import reason_of_no_step

if TYPE_CHECKING:
    from counting.analysis import Analysis
    from counting.step.fit import Fit, Remedy
    from counting.step.memory import StepMemory


MOST_NAMED = 3  # of the GPUs that a step does not fit


def fits_screen(
    lines: Lines, analysis: "Analysis", fits: "Sequence[Fit]", most: int, *, times: int, remedies: bool
) -> None:
    """Add whether the step fits one device of each of the first `most` GPUs, and how long it takes on `times`.

    With `remedies` also what to give where that is not known. Without `fits`, why there are none.
    """
    if not fits:
        reason = reason_of_no_step(analysis.notes)
        lines.heading(f"Does a training step of {analysis.name} fit on one device?")
        lines.fact("not known", f"a training step is not measured{f': {reason}' if reason else ''}")
        return
    lines.heading(f"Does a training step of {analysis.name} fit on one device? In GiB:")
    fit_rows(lines, analysis, fits, most)
    time_rows(lines, analysis, times, remedies=remedies)
    if analysis.memory is not None:
        reserved_fact(lines, "reserved", analysis.memory)
    needs_fact(lines, fits, analysis.memory)


def fit_rows(lines: Lines, analysis: "Analysis", fits: "Sequence[Fit]", most: int) -> None:
    """Add a row for each of the first `most` GPUs: needed and available memory, and the cheapest change that fits."""
    rows: list[tuple[str, ...]] = [("GPU", "needs", "has", "left", "fits", "then needs")]
    for fit in fits[:most]:
        cheapest = fit.remedies[0] if fit.remedies else None
        rows.append(
            (
                fit.gpu,
                *(_number(size) for size in (fit.needed_bytes, fit.capacity_bytes, fit.spare_bytes)),
                _answer(fit, analysis.setup).replace("loss chunk", "chunk"),  # the row must fit its line
                _number(cheapest.needed_bytes) if cheapest else "",
            )
        )
    lines.columns(rows)
    lines.rows_left(max(0, len(fits) - most))
    if unfused := [fit.gpu for fit in fits if fit.kernels != analysis.setup.kernels]:
        lines.fact("eager", f"{', '.join(unfused)}: PyTorch has no fused attention with grouped queries there")


def reserved_fact(lines: Lines, label: str, memory: "StepMemory") -> None:
    """Add what the allocator reserves and, with notes, what is allocated then, and what is free."""
    ends, parts = memory.reserved_bytes, memory.reserved_parts
    if ends is None or parts is None:
        return
    low, high = map(_number, ends)
    text = f"{'' if low == high else f'{low} to '}{high} GiB by torch's allocator, an estimate"
    if lines.notes:
        free = {"whole segments": parts.idle_bytes, "fragments": parts.fragment_bytes}
        of_it = ", ".join(f"{name} {_number(value)}" for name, value in free.items() if value)
        text += f"; allocated {_number(parts.allocated_bytes)}{f'; free then: {of_it}' if of_it else ''}"
    alone = WORST_REPLAYED_NOTE in memory.notes
    lines.fact(label, f"{text}; of this rank alone: others may reserve more" if alone else text)


def needs_fact(lines: Lines, fits: "Sequence[Fit]", memory: "StepMemory | None") -> None:
    """Add what the needed bytes contain, in short without notes; `memory` is that of the step or of its worst rank."""
    bases = {fit.basis for fit in fits}
    most = "what the allocator reserves at most"
    text = most if bases == {"reserved"} else "what is allocated at the worst moment"
    if len(bases) > 1:
        text = f"{most}; {text} with eager kernels"
    text += _beside("the CUDA context", [fit.context_bytes for fit in fits], sizes_too=lines.notes)
    text += _beside("communicators", [fit.communicator_bytes for fit in fits], sizes_too=lines.notes)
    ranks = any(fit.rank is not None for fit in fits)
    long = memory is not None and TAKES_LONG_NOTE in memory.notes
    left_out = ["communicators"] * (ranks and not any(fit.communicator_bytes for fit in fits))
    if "allocated" in bases and len(bases) == 1:
        left_out += ["workspaces in kernels"] * lines.notes
        left_out.append(f"the allocator's reserve{', which takes long here' if long else ''}")
    add = lines.fact if long or "reserved" in bases else lines.note  # a reserve that is off needs no word
    add("needs", f"{text}; left out: {', '.join(left_out)}" if left_out else text)


def _beside(what: str, sizes: Sequence[int], *, sizes_too: bool) -> str:
    """Another part of the needed bytes, and its size; empty where no GPU has it."""
    known = [size for size in sizes if size]
    if not known:
        return ""
    if not sizes_too:
        return f", {what}"
    ends = dict.fromkeys(gib(size) for size in (min(known), max(known)))
    return f", and {what}{'' if len(known) == len(sizes) else ' where it is known'}: {' to '.join(ends)}"


def remedy_in_words(remedy: "Remedy", setup: Setup) -> str:
    """The settings of `remedy` that differ from `setup`."""
    changes = [] if remedy.recompute == setup.recompute else [f"recompute {recompute_in_words(remedy.recompute)}"]
    if remedy.loss_chunk != setup.loss_chunk and remedy.loss_chunk is not None:
        changes.append(f"loss chunk {integer(remedy.loss_chunk)}")
    return ", ".join(changes)


def fits_in_words(fits: "Sequence[Fit]", analysis: "Analysis", *, most: int | None = None) -> str:
    """The GPUs on which the step fits as it is, then with each remedy; lists are cut to about `most` names."""
    setup = analysis.setup
    groups: dict[str, list[str]] = {}
    for fit in fits:
        if fit.fits:
            groups.setdefault("", []).append(fit.gpu)
    for fit in fits:
        if not fit.fits and fit.remedies:
            groups.setdefault(f"with {remedy_in_words(fit.remedies[0], setup)}: ", []).append(fit.gpu)
    found = sum(map(len, groups.values()))
    if not found and most is not None:
        return f"none of {f'{len(fits)} GPUs' if len(fits) > most else listed([fit.gpu for fit in fits])}"
    if not found:
        largest = max(fits, key=lambda fit: fit.capacity_bytes)
        return f"none: {largest.gpu} has {gib(largest.capacity_bytes)}{_tried(analysis)}"
    parts = [f"{how}{_names(names, most)}{'' if how else ' as it is'}" for how, names in groups.items()]
    others = [fit.gpu for fit in fits if not fit.fits and not fit.remedies]
    if others and most is None:
        names = listed(others) if len(others) <= MOST_NAMED else f"the other {len(others)}"
        parts.append(f"none of {names}{_tried(analysis)}")
    return "; ".join(parts)


def _tried(analysis: "Analysis") -> str:
    """What was changed to make the step fit."""
    worst, setup = worst_rank(analysis), analysis.setup
    memory = analysis.memory if worst is None else worst.memory
    if memory is None:
        return ""
    alternatives = memory.alternatives
    tried = ["recompute"] * any(other.recompute != setup.recompute for other in alternatives)
    chunks = {other.loss_chunk for other in alternatives} - {setup.loss_chunk, None}
    tried += [f"loss chunk {integer(chunk)}" for chunk in sorted(chunk for chunk in chunks if chunk is not None)]
    return f" (tried: {', '.join(tried)})" if tried else ""


def fits_by_gpu(fits: "Sequence[Fit]", setup: Setup, *, most: int) -> str:
    """Whether the step fits each of the first `most` GPUs: those that it fits first, then those that need a change."""
    ordered = sorted(fits, key=lambda fit: (not fit.fits, not fit.remedies))
    answers = [f"{fit.gpu} {_answer(fit, setup)}" for fit in ordered[:most]]
    left = len(fits) - most
    return ", ".join(answers) + (f" and {left} more" if left > 0 else "")


def short_answer(fit: "Fit") -> str:
    """Whether the step fits, in a column."""
    return "yes" if fit.fits else "if changed" if fit.remedies else "no"


def _answer(fit: "Fit", setup: Setup) -> str:
    if fit.fits:
        return "yes"
    words = remedy_in_words(fit.remedies[0], setup) if fit.remedies else "no"
    return words if not fit.remedies or ", " in words else f"with {words}"  # two changes fill the column


def _number(size: int) -> str:
    return gib(size).removesuffix(" GiB")


def _names(names: Sequence[str], most: int | None) -> str:
    if most is None or len(names) <= most + 1:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
