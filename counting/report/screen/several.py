"""How long a step takes, and whether it fits, of several models on the first screen."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from counting.report.format import readable, readable_seconds
from counting.report.screen.fits import short_answer
from counting.report.screen.lines import Lines
from counting.report.screen.time import SPEED_UNITS, limits_facts, mfu_in_words
from counting.step.time import StepTime

if TYPE_CHECKING:
    from counting.analysis import Analysis


def time_columns(lines: Lines, analyses: "Sequence[Analysis]", most: int, *, remedies: bool) -> None:
    """Add a table of how long a step of each of several models takes on each of its first `most` GPUs, if it fits."""
    lines.heading("How long does a training step take? Tokens/s of one GPU:")
    shown: list[StepTime] = []
    rows: list[tuple[str, ...]] = [("model", "GPU", "a step", "tokens/s", "MFU", "not below", "fits")]
    left = 0
    for analysis in analyses:
        fits = {fit.gpu: short_answer(fit) for fit in analysis.fits or ()}
        times = analysis.step_time or ()
        shown += times[:most]
        left += max(0, len(times) - most)
        rows += [
            (
                "" if index else analysis.name,
                time.gpu,
                readable_seconds(time.seconds),
                readable(time.tokens_per_second_per_gpu, SPEED_UNITS),
                mfu_in_words(time),
                readable_seconds(time.bound_seconds),
                fits.get(time.gpu, ""),
            )
            for index, time in enumerate(times[:most])
        ]
    lines.columns(rows, names=2)
    lines.rows_left(left)
    limits_facts(lines, shown, analyses, remedies=remedies)
