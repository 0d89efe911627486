"""One scale for a cluster and its software, from measured and estimated seconds, with its error by leave-one-out.

Errors of a model of time are factors: a stack that is slow is slow by a share, whatever the step takes. So all is
computed with the ratios measured / estimated, and the scale is their geometric mean: the scale of the least sum of
squared logarithms of errors, in which every row counts alike, a long step as much as a short one. A median would pass
over a row that does not fit; here it widens the band.
"""

import math
from collections.abc import Sequence

import msgspec

from counting.cost.cluster import FEWEST_CALIBRATED, Calibration
from torch_models.errors import UserError


class ScaledRow(msgspec.Struct, frozen=True, kw_only=True):
    """One measured step, predicted by the scale that the other rows give."""

    measured_seconds: float
    estimated_seconds: float
    predicted_seconds: float  # the estimate times the scale of the other rows
    error: float  # predicted / measured - 1: above 0, the step is faster than predicted


LARGEST_FACTOR = 1000.0  # either way, as a cluster's file may say: beyond it, seconds are in another unit


def check_number(rows: int) -> None:
    """Raises UserError for fewer than `FEWEST_CALIBRATED` rows."""
    if rows < FEWEST_CALIBRATED:
        steps = "1 measured step is" if rows == 1 else f"{rows} measured steps are"
        raise UserError(f"{steps} too few: a scale and its error need at least {FEWEST_CALIBRATED}")


def fit_scale(measured: Sequence[float], estimated: Sequence[float]) -> tuple[Calibration, tuple[ScaledRow, ...]]:
    """The scale of rows of seconds, and each row as the others predict it.

    With l = log(measured / estimated) of each of n rows, scale = exp(mean l), and that without a row is
    exp((n mean l - l) / (n - 1)). `low` and `high` are the smallest and the largest measured / predicted: one row at
    least lies on each side of the mean, so low <= 1 <= high. Raises UserError for fewer than `FEWEST_CALIBRATED` rows,
    and for factors beyond `LARGEST_FACTOR`.
    """
    rows = len(measured)
    check_number(rows)
    logarithms = [math.log(of / by) for of, by in zip(measured, estimated, strict=True)]
    total = math.fsum(logarithms)
    without = [math.exp((total - logarithm) / (rows - 1)) for logarithm in logarithms]
    predicted = [other * by for other, by in zip(without, estimated, strict=True)]
    off = [of / by for of, by in zip(measured, predicted, strict=True)]
    scale = math.exp(total / rows)
    if not 1 / LARGEST_FACTOR <= min(scale, *off) <= max(scale, *off) <= LARGEST_FACTOR:
        worst = max((scale, *off), key=lambda factor: abs(math.log(factor)))
        raise UserError(
            f"measured steps are off by {worst:,.6g} times: give seconds of one step, of the step described"
        )
    calibration = Calibration(scale=scale, low=min(*off, 1.0), high=max(*off, 1.0), rows=rows)
    scaled = (
        ScaledRow(measured_seconds=of, estimated_seconds=by, predicted_seconds=to, error=to / of - 1)
        for of, by, to in zip(measured, estimated, predicted, strict=True)
    )
    return calibration, tuple(scaled)


def median_error(rows: Sequence[ScaledRow]) -> float:
    """The median of the absolute errors of the rows; of an even number, the mean of the two in the middle."""
    errors = sorted(abs(row.error) for row in rows)
    middle = len(errors) // 2
    return errors[middle] if len(errors) % 2 else (errors[middle - 1] + errors[middle]) / 2
