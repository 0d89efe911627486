"""Training and serving together: the paper's figures, its limits, and the optima against a numerical minimiser."""

from collections.abc import Callable
from math import exp, inf, log

import numpy as np
import pytest

from counting.cost.scaling_laws import (
    LAWS,
    Constant,
    ScalingLaw,
    compute_optimum,
    find_law,
    optimal_tokens,
    predicted_loss,
)
from counting.cost.scaling_laws.inference import (
    best_for_compute,
    cheapest_for_loss,
    inference_aware,
    lifetime_flops,
)
from counting.cost.scaling_laws.inverses import reducible_loss
from counting.cost.scaling_laws.law import constants_of
from tests.counting.cost.scaling_laws.own_laws import COURSE, draws_near, law_of
from torch_models.errors import UserError

# The constants that the paper uses: those of Hoffmann et al. with three digits of the exponents.
SARDANA = ScalingLaw(
    name="sardana-2024",
    irreducible_loss=Constant(value=1.69),
    parameter_coefficient=Constant(value=406.4),
    token_coefficient=Constant(value=410.7),
    parameter_exponent=Constant(value=0.336),
    token_exponent=Constant(value=0.283),
    source="Sardana et al. 2024 (arXiv 2401.00448), §2",
    fitted_parameters=(70e6, 16e9),
    fitted_tokens=(5e9, 500e9),
)
by_law = pytest.mark.parametrize("law", [SARDANA, *LAWS], ids=lambda law: law.name)
served = pytest.mark.parametrize("inference_tokens", [10**11, 2 * 10**12, 10**15])


def test_figure_1_of_the_paper() -> None:
    # Of a 13B model and 2 trillion tokens of inference: a 7B model on more data saves 1.7 x 10^22 FLOPs, or 17 %.
    # D of the 13B model is (0.283 x 410.7 x 13e9^0.336 / (0.336 x 406.4))^(1 / 0.283) = 5.76486e11, loss 2.045282:
    # 6 x 13e9 x 5.76486e11 + 2 x 13e9 x 2e12 = 4.49659e22 + 5.2e22 = 9.69659e22 FLOPs. The best one, of 6.9686e9, needs
    # D = (410.7 / (2.045282 - 1.69 - 406.4 / 6.9686e9^0.336))^(1 / 0.283) = 1.24784e12:
    # 6 x 6.9686e9 x 1.24784e12 + 2 x 6.9686e9 x 2e12 = 5.21741e22 + 2.78744e22 = 8.00485e22 FLOPs.
    tokens = optimal_tokens(SARDANA, 13 * 10**9)
    before = lifetime_flops(13e9, tokens, 2e12)
    parameters, longer = map(exp, cheapest_for_loss(constants_of(SARDANA), reducible_loss(SARDANA, 13e9, tokens), 2e12))
    after = lifetime_flops(parameters, longer, 2e12)
    assert before == pytest.approx(9.69659e22, rel=1e-6)
    assert after == pytest.approx(8.00485e22, rel=1e-6)
    assert (parameters, longer) == pytest.approx((6.9686e9, 1.24784e12), rel=1e-4)
    assert round((before - after) / 1e22, 1) == 1.7
    assert round(100 * (1 - after / before)) == 17


def minimum(function: Callable[[float], float], low: float, high: float) -> tuple[float, float]:
    """The smallest value of `function` on a grid between `low` and `high`, and where, three times refined."""
    for _ in range(4):
        grid = [low + (high - low) * step / 400 for step in range(401)]
        values = [function(x) for x in grid]
        best = values.index(min(values))
        low, high = grid[max(best - 2, 0)], grid[min(best + 2, 400)]
    return values[best], grid[best]


@by_law
@served
def test_the_best_for_compute_is_the_numerical_minimum(law: ScalingLaw, inference_tokens: float) -> None:
    flops = 5.616e23

    def loss(log_parameters: float) -> float:
        tokens = (flops - 2 * exp(log_parameters) * inference_tokens) / (6 * exp(log_parameters))
        return predicted_loss(law, exp(log_parameters), tokens) if tokens > 0 else 1e9

    least, place = minimum(loss, log(1e5), log(1e14))
    parameters, tokens = map(exp, best_for_compute(constants_of(law), flops, inference_tokens))
    assert lifetime_flops(parameters, tokens, inference_tokens) == pytest.approx(flops, rel=1e-9)
    assert predicted_loss(law, parameters, tokens) == pytest.approx(least, rel=1e-10)
    assert log(parameters) == pytest.approx(place, abs=1e-4)


@by_law
@served
def test_the_cheapest_for_a_loss_is_the_numerical_minimum(law: ScalingLaw, inference_tokens: float) -> None:
    loss = law.irreducible_loss.value + 0.2

    def flops(log_parameters: float) -> float:
        left = (
            loss
            - law.irreducible_loss.value
            - law.parameter_coefficient.value / exp(law.parameter_exponent.value * log_parameters)
        )
        if left <= 0:
            return 1e99
        tokens = (law.token_coefficient.value / left) ** (1 / law.token_exponent.value)
        return lifetime_flops(exp(log_parameters), tokens, inference_tokens)

    least, place = minimum(flops, log(1e6), log(1e14))
    parameters, tokens = map(exp, cheapest_for_loss(constants_of(law), 0.2, inference_tokens))
    assert predicted_loss(law, parameters, tokens) == pytest.approx(loss, rel=1e-12)
    assert lifetime_flops(parameters, tokens, inference_tokens) == pytest.approx(least, rel=1e-8)
    assert log(parameters) == pytest.approx(place, abs=1e-3)


@by_law
@served
def test_both_questions_have_the_same_answer(law: ScalingLaw, inference_tokens: float) -> None:
    best = best_for_compute(constants_of(law), 1e24, inference_tokens)
    reducible = reducible_loss(law, *map(exp, best))
    assert cheapest_for_loss(constants_of(law), reducible, inference_tokens) == pytest.approx(best, abs=1e-9)


@by_law
@pytest.mark.parametrize("training_flops", [1e20, 5.616e23, 1e27])
def test_without_serving_it_is_the_plain_optimum(law: ScalingLaw, training_flops: float) -> None:
    plain = compute_optimum(law, training_flops)
    logs, constants = (log(plain.parameters), log(plain.tokens)), constants_of(law)
    assert best_for_compute(constants, training_flops, 0) == pytest.approx(logs, abs=1e-7)
    reducible = reducible_loss(law, plain.parameters, plain.tokens)
    assert cheapest_for_loss(constants, reducible, 0) == pytest.approx(logs, abs=1e-6)
    one_token = inference_aware(law, training_flops, 1)
    assert one_token.best.parameters == pytest.approx(plain.parameters, rel=1e-8)
    assert one_token.saved == pytest.approx(0, abs=1e-8)


@by_law
def test_more_serving_wants_smaller_models_on_more_tokens_each(law: ScalingLaw) -> None:
    rows = [inference_aware(law, 5.616e23, 10**power) for power in range(9, 16)]
    for sequence, falls in (
        ([row.best.parameters for row in rows], True),
        ([row.best.tokens_per_parameter for row in rows], False),
        ([row.best.predicted_loss for row in rows], False),
        ([row.cheapest.parameters for row in rows], True),
        ([row.saved for row in rows], False),
    ):
        assert sequence == sorted(sequence, reverse=falls)
        assert sequence[0] != sequence[-1]


@by_law
@served
def test_the_result_keeps_its_promises(law: ScalingLaw, inference_tokens: int) -> None:
    result = inference_aware(law, 5.616e23, inference_tokens)
    best, plain, cheapest = result.best, result.plain, result.cheapest
    optimum = compute_optimum(law, 5.616e23)
    assert (plain.parameters, plain.tokens) == (optimum.parameters, optimum.tokens)
    assert plain.training_flops <= 5.616e23 < plain.total_flops
    assert best.total_flops <= 5.616e23 < best.total_flops + 6 * best.parameters
    for model in (best, plain, cheapest):
        assert model.training_flops == 6 * model.parameters * model.tokens
        assert model.inference_flops == 2 * model.parameters * inference_tokens
        assert model.total_flops == model.training_flops + model.inference_flops
        assert model.inference_share == model.inference_flops / model.total_flops
    assert cheapest.predicted_loss <= plain.predicted_loss < best.predicted_loss
    assert result.added == plain.inference_flops / plain.training_flops
    assert result.saved == pytest.approx(1 - cheapest.total_flops / plain.total_flops)


def test_a_budget_for_no_model_is_refused() -> None:
    with pytest.raises(UserError, match="too few to train any model and serve 1,000,000,000,000 tokens"):
        inference_aware(find_law("course"), 1e12, 10**12)


def test_intervals_are_those_of_every_draw_as_a_law() -> None:
    draws = draws_near(COURSE)
    found = inference_aware(law_of(COURSE, *draws), 5.616e23, 10**12)
    each = [inference_aware(law_of(draw), 5.616e23, 10**12).best for draw in draws]
    losses = [predicted_loss(law_of(draw), found.best.parameters, found.best.tokens) for draw in draws]
    assert found.intervals is not None
    for interval, values in (
        (found.intervals.parameters, [one.parameters for one in each]),
        (found.intervals.tokens, [one.tokens for one in each]),
        (found.intervals.tokens_per_parameter, [one.tokens_per_parameter for one in each]),
        (found.intervals.loss, losses),
    ):
        assert [interval.low, interval.high] == pytest.approx(np.percentile(values, [2.5, 97.5]), rel=1e-7)
    assert inference_aware(law_of(COURSE), 5.616e23, 10**12).intervals is None


def test_draws_that_are_far_off_give_an_interval_still() -> None:
    extreme = [(0.0, 1e300, 1e-300, 1e-3, 1e-3)] * 20 + [(1.0, 1e-300, 1e300, 3.0, 3.0)] * 20
    intervals = inference_aware(law_of(COURSE, *extreme), 5.616e23, 10**12).intervals
    assert intervals is not None
    assert intervals.parameters.low <= intervals.parameters.high < inf
    assert 0 <= intervals.loss.low <= intervals.loss.high
