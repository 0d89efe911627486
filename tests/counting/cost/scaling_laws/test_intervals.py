"""95 % intervals from the draws of a bootstrap."""

from random import Random

import numpy as np
import pytest

from counting.cost.scaling_laws import (
    LAWS,
    Interval,
    compute_optimum,
    loss_interval,
    optimal_tokens,
    optimum_intervals,
    predicted_loss,
)
from counting.cost.scaling_laws.intervals import interval_of, optimal_tokens_interval
from tests.counting.cost.scaling_laws.own_laws import law_of

COURSE = (1.69, 406.4, 410.7, 0.34, 0.29)
FLOPS = 5.616e23


def test_an_interval_by_hand() -> None:
    """Of 0, 1, ..., 40: 2.5 % of 40 steps is 1, and 97.5 % is 39. Of 0, ..., 50: 1.25 and 48.75."""
    assert interval_of([float(n) for n in reversed(range(41))]) == Interval(low=1, high=39)
    assert interval_of([float(n) for n in range(51)]) == Interval(low=1.25, high=48.75)


def drawn(seed: int = 1, count: int = 100) -> list[tuple[float, float, float, float, float]]:
    """Draws near the default law."""
    random = Random(seed)
    near = [[number * random.uniform(0.9, 1.1) for number in COURSE] for _ in range(count)]
    return [(e, a, b, alpha, beta) for e, a, b, alpha, beta in near]


def test_each_number_is_that_of_every_draw_as_a_law() -> None:
    law, draws = law_of(COURSE, *drawn()), [law_of(draw) for draw in drawn()]
    found = optimum_intervals(law, FLOPS)
    assert found is not None
    best = compute_optimum(law, FLOPS)
    optima = [compute_optimum(one, FLOPS) for one in draws]
    for interval, values in (
        (found.parameters, [one.parameters for one in optima]),
        (found.tokens, [one.tokens for one in optima]),
        (found.tokens_per_parameter, [one.tokens / one.parameters for one in optima]),
        (found.loss, [predicted_loss(one, best.parameters, best.tokens) for one in draws]),
    ):
        assert [interval.low, interval.high] == pytest.approx(np.percentile(values, [2.5, 97.5]), rel=1e-8)
    at_a_size = optimal_tokens_interval(law, 7 * 10**9)
    assert at_a_size is not None
    values = [optimal_tokens(one, 7 * 10**9) for one in draws]
    assert [at_a_size.low, at_a_size.high] == pytest.approx(np.percentile(values, [2.5, 97.5]), rel=1e-8)
    loss = loss_interval(law, 7e9, 1e12)
    assert loss is not None
    losses = [predicted_loss(one, 7e9, 1e12) for one in draws]
    assert [loss.low, loss.high] == pytest.approx(np.percentile(losses, [2.5, 97.5]), rel=1e-12)


def test_constants_that_depend_on_each_other_are_not_taken_apart() -> None:
    """A and B doubled together leave the optimum where it is, however wide each of them alone is."""
    draws = [(1.69, 406.4 * factor, 410.7 * factor, 0.34, 0.29) for factor in np.linspace(0.5, 2, 61).tolist()]
    law = law_of(COURSE, *draws)
    found, best = optimum_intervals(law, FLOPS), compute_optimum(law, FLOPS)
    assert found is not None
    assert [found.parameters.low, found.parameters.high] == pytest.approx([best.parameters] * 2, rel=1e-9)
    assert found.loss.low < predicted_loss(law, best.parameters, best.tokens) < found.loss.high


def test_a_law_without_draws_has_no_interval() -> None:
    assert optimum_intervals(LAWS[0], FLOPS) is None
    assert loss_interval(LAWS[0], 1e9, 1e11) is None
    assert optimal_tokens_interval(LAWS[0], 1e9) is None


def test_a_draw_of_extreme_constants_is_still_a_number() -> None:
    found = optimum_intervals(
        law_of(COURSE, *[(1.0, 1e300, 1e-300, 1e-3, 1e-3), (2.0, 1.0, 1e3, 1.0, 1.0)] * 20), FLOPS
    )
    assert found is not None
    assert found.parameters.high < float("inf")
