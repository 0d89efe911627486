"""How long a training step takes on each GPU, on the first screen."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from counting.report.format import NONE, percent, readable, readable_seconds
from counting.report.screen.lines import Lines, listed
from counting.step.time import StepTime

if TYPE_CHECKING:
    from counting.analysis import Analysis

SPEED_UNITS = ((6, "M"), (3, "k"))


def time_rows(lines: Lines, analysis: "Analysis", most: int) -> None:
    """Add a line for each of the first `most` GPUs, whose rates were taken, and where there is no time, why."""
    times = (analysis.step_time or ())[:most]
    for time in times:
        lines.text(time_in_words(time))
    if borrowed := [f"{time.gpu} has those of {time.rates_of}, scaled" for time in times if time.rates_of != time.gpu]:
        lines.fact("rates", f"none are known of it: {listed(borrowed)}")
    if reasons := _reasons(analysis):
        lines.fact("no time", "; ".join(reasons))
    if times:
        lines.fact("a step", _basis(times[0], analysis))


def time_in_words(time: StepTime) -> str:
    """One line: seconds, speed, MFU with its band, and the bound."""
    speed = readable(time.tokens_per_second_per_gpu, SPEED_UNITS)
    return (
        f"{time.gpu}: {readable_seconds(time.seconds)} a step, {speed} tokens/s a GPU, "
        f"MFU {mfu_in_words(time)}; not below {readable_seconds(time.bound_seconds)}"
    )


def times_in_short(times: Sequence[StepTime], *, most: int) -> str:
    """Seconds and MFU on each of the first `most` GPUs."""
    shown = [f"{time.gpu} {readable_seconds(time.seconds)}, MFU {mfu_in_words(time)}" for time in times[:most]]
    left = len(times) - most
    return f"a step: {'; '.join(shown)}{f' and {left} more' if left > 0 else ''}"


def mfu_in_words(time: StepTime) -> str:
    """The MFU and in brackets the ends of its band; without them if it has no width."""
    low, high = (f"{100 * end:.0f}" for end in (time.mfus[0], time.mfus[-1]))
    return f"{percent(time.mfu, 0)}{'' if low == high else f' ({low}{NONE}{high})'}"


def _basis(time: StepTime, analysis: "Analysis") -> str:
    """What the figures rest on, in one line."""
    has_band = time.low_seconds < time.high_seconds
    if time.basis == "calibrated":
        return f"calibrated by measured steps{', whose spread is in brackets' if has_band else ''}"
    execution = "compiled" if analysis.setup.execution == "compiled" else "op by op"
    return (
        f"estimate, {execution}{'; in brackets its errors on published runs' if has_band else ', from sourced rates'}"
    )


def _reasons(analysis: "Analysis") -> list[str]:
    """Why a step is not timed: GPUs with the same reason together."""
    if analysis.step_time == ():
        return ["by Megatron-LM's rules no step is run that could be timed"]
    gpus: dict[str, list[str]] = {}
    for one in analysis.not_timed:
        gpus.setdefault(one.reason, []).append(one.gpu)
    return [f"{', '.join(names)}: {reason}" for reason, names in gpus.items()]
