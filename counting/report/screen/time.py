"""How long a training step takes on each GPU, on the first screen."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from counting.report.format import NONE, percent, readable, readable_seconds
from counting.report.screen.lines import INDENT, Lines, listed
from counting.step.time import HELD_TO_BOUND, StepTime

if TYPE_CHECKING:
    from counting.analysis import Analysis

SPEED_UNITS = ((6, "M"), (3, "k"))
FORMS = (
    "{gpu}: {seconds} a step, {speed} tokens/s a GPU, MFU {mfu}; not below {bound}",
    "{gpu}: {seconds} a step, {speed} tokens/s, MFU {mfu}; not below {bound}",
    "{gpu}: {seconds} a step, MFU {mfu}; bound {bound}",
)
AS_PRODUCTS = {"attention": "attention", "experts": "products of experts"}


def time_rows(lines: Lines, analysis: "Analysis", most: int, *, remedies: bool) -> None:
    """Add a line for each of the first `most` GPUs, whose rates were taken, and where there is no time, why.

    With `remedies` also what to give there.
    """
    times = (analysis.step_time or ())[:most]
    for text in times_in_words(times, lines.width - INDENT):
        lines.text(text)
    if borrowed := [f"{time.gpu} has those of {time.rates_of}, scaled" for time in times if time.rates_of != time.gpu]:
        lines.fact("rates", f"none are known of it: {listed(borrowed)}")
    limits_facts(lines, times, [analysis], remedies=remedies)
    if held := [time.gpu for time in times if any(said.startswith(HELD_TO_BOUND) for said in time.assumptions)]:
        lines.fact("calibration", f"{HELD_TO_BOUND[0].lower()}{HELD_TO_BOUND[1:]}: {listed(held)}")
    if times:
        lines.fact("a step", _basis(times[0], analysis))


def limits_facts(lines: Lines, times: Sequence[StepTime], analyses: "Sequence[Analysis]", *, remedies: bool) -> None:
    """Add what is too fast in `times` for want of rates, and on which GPUs no time of a step is worked out, and why."""
    for part, name in AS_PRODUCTS.items():
        if gpus := dict.fromkeys(time.gpu for time in times if part in time.as_products):
            lines.fact("too fast", f"{name} on {listed(list(gpus))}, no rates are known: as fast as large products")
    if reasons := _reasons(analyses, remedies=remedies):
        lines.fact("no time", "; ".join(reasons))


def times_in_words(times: Sequence[StepTime], width: int) -> list[str]:
    """One line of at most `width` columns for each: seconds, speed, MFU with its band, and the bound.

    All in the same words: in fewer ones if the line of one is too long, and the last ones are without the speed.
    """
    texts: list[str] = []
    for form in FORMS:
        texts = [
            form.format(
                gpu=time.gpu,
                seconds=readable_seconds(time.seconds),
                speed=readable(time.tokens_per_second_per_gpu, SPEED_UNITS),
                mfu=mfu_in_words(time),
                bound=readable_seconds(time.bound_seconds),
            )
            for time in times
        ]
        if all(len(text) <= width for text in texts):
            break
    return texts


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


def _reasons(analyses: "Sequence[Analysis]", *, remedies: bool) -> list[str]:
    """Why a step is not timed: GPUs with the same reason together."""
    if any(analysis.step_time == () for analysis in analyses):
        return ["by Megatron-LM's rules no step is run that could be timed"]
    gpus: dict[str, dict[str, None]] = {}
    for one in [one for analysis in analyses for one in analysis.not_timed]:
        reason = f"{one.reason}: {one.remedy}" if one.remedy and remedies else one.reason
        gpus.setdefault(reason, {})[one.gpu] = None
    return [f"{', '.join(names)}: {reason}" for reason, names in gpus.items()]
