"""95 % intervals of what a law says, from the draws of its bootstrap.

The constants of a law depend on each other, so the ends of their single intervals say nothing of N, D or the loss: each
draw is a law of its own, and the interval of a number has that number under 95 % of them. A law without draws has none.
"""

from collections.abc import Sequence
from math import exp, floor, log

import msgspec

from counting.cost.scaling_laws.law import ScalingLaw, loss_of_constants
from counting.cost.scaling_laws.optimum import compute_optimum, log_optimum

LOW, HIGH = 0.025, 0.975
LARGEST_LOG = 700.0  # e^700 is still a float


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """The ends of a 95 % interval."""

    low: float
    high: float


class OptimumIntervals(msgspec.Struct, frozen=True, kw_only=True):
    """95 % intervals of the optimum for a compute budget, and of the loss there."""

    parameters: Interval  # of each draw's own optimum
    tokens: Interval
    tokens_per_parameter: Interval
    loss: Interval  # that each draw predicts at the law's own optimum, nats per token


def optimum_intervals(law: ScalingLaw, training_flops: float) -> OptimumIntervals | None:
    """The intervals of the optimum at 6 N D = `training_flops`; None for a law without draws."""
    if not law.bootstrap:
        return None
    optimum = compute_optimum(law, training_flops)
    found = [log_optimum(draw, training_flops) for draw in law.bootstrap]
    return intervals_of(found, [loss_of_constants(draw, optimum.parameters, optimum.tokens) for draw in law.bootstrap])


def intervals_of(optima: Sequence[tuple[float, float]], losses: Sequence[float]) -> OptimumIntervals:
    """The intervals of `optima`, (ln N, ln D) of each draw, and of `losses`, of each draw at the law's own optimum."""
    return OptimumIntervals(
        parameters=_of_logs([parameters for parameters, _ in optima]),
        tokens=_of_logs([tokens for _, tokens in optima]),
        tokens_per_parameter=_of_logs([tokens - parameters for parameters, tokens in optima]),
        loss=interval_of(losses),
    )


def loss_interval(law: ScalingLaw, parameters: float, tokens: float) -> Interval | None:
    """The interval of the loss of `parameters` on `tokens`; None for a law without draws."""
    return _loss_interval(law, parameters, tokens) if law.bootstrap else None


def optimal_tokens_interval(law: ScalingLaw, parameters: float) -> Interval | None:
    """The interval of the D for which N = `parameters` is compute-optimal; None for a law without draws."""
    if not law.bootstrap:
        return None
    logs = [
        (log(beta) + log(of_tokens) + alpha * log(parameters) - log(alpha) - log(of_parameters)) / beta
        for _, of_parameters, of_tokens, alpha, beta in law.bootstrap
    ]
    return _of_logs(logs)


def interval_of(values: Sequence[float]) -> Interval:
    """2.5 and 97.5 percent of `values`, linear between neighbours (as numpy.percentile)."""
    ordered = sorted(values)
    return Interval(low=_quantile(ordered, LOW), high=_quantile(ordered, HIGH))


def _loss_interval(law: ScalingLaw, parameters: float, tokens: float) -> Interval:
    return interval_of([loss_of_constants(draw, parameters, tokens) for draw in law.bootstrap])


def _of_logs(logs: Sequence[float]) -> Interval:
    """The interval of e^x of each."""
    return interval_of([exp(min(value, LARGEST_LOG)) for value in logs])


def _quantile(ordered: Sequence[float], part: float) -> float:
    place = part * (len(ordered) - 1)
    below = floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
