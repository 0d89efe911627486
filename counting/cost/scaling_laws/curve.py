"""The loss over model sizes at one compute budget, for drawing."""

from math import exp, log

import msgspec

from counting.cost.scaling_laws.intervals import OptimumIntervals, loss_interval, optimum_intervals
from counting.cost.scaling_laws.law import ScalingLaw, predicted_loss
from counting.cost.scaling_laws.optimum import FLOPS_PER_PARAMETER_AND_TOKEN, Optimum, compute_optimum

EACH_WAY = 30.0  # the curve goes from a 30th of the optimal N to 30 times that
POINTS = 121


class LossCurve(msgspec.Struct, frozen=True, kw_only=True):
    """The loss at N = `parameters` on D = C / 6N = `tokens`, from the smallest N to the largest."""

    law: str
    training_flops: float
    parameters: tuple[float, ...]
    tokens: tuple[float, ...]
    loss: tuple[float, ...]  # nats per token
    low_loss: tuple[float, ...] | None  # 95 % interval at each N; None for a law without draws
    high_loss: tuple[float, ...] | None
    optimum: Optimum
    optimum_loss: float
    intervals: OptimumIntervals | None


def loss_curve(
    law: ScalingLaw,
    training_flops: float,
    *,
    fewest: float | None = None,
    most: float | None = None,
    points: int = POINTS,
) -> LossCurve:
    """The curve at 6 N D = `training_flops`, `points` of N between `fewest` and `most`, equally far apart in log N.

    Raises UserError if the budget is too small for any model.
    """
    optimum = compute_optimum(law, training_flops)
    low, high = log(fewest or optimum.parameters / EACH_WAY), log(most or optimum.parameters * EACH_WAY)
    sizes = tuple(exp(low + (high - low) * point / (points - 1)) for point in range(points))
    tokens = tuple(training_flops / (FLOPS_PER_PARAMETER_AND_TOKEN * size) for size in sizes)
    places = list(zip(sizes, tokens, strict=True))
    intervals = [loss_interval(law, *place) for place in places] if law.bootstrap else []
    known = [interval for interval in intervals if interval is not None]
    return LossCurve(
        law=law.name,
        training_flops=training_flops,
        parameters=sizes,
        tokens=tokens,
        loss=tuple(predicted_loss(law, *place) for place in places),
        low_loss=tuple(interval.low for interval in known) or None,
        high_loss=tuple(interval.high for interval in known) or None,
        optimum=optimum,
        optimum_loss=predicted_loss(law, optimum.parameters, optimum.tokens),
        intervals=optimum_intervals(law, training_flops),
    )
