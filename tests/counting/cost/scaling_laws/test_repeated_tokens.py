"""Repeated tokens: the paper's figures, its limits, and the optimum against a numerical minimiser."""

from math import exp, inf, log

import numpy as np
import pytest
from msgspec.structs import replace

from counting.cost.scaling_laws import LAWS, ScalingLaw, compute_optimum, find_law, optimal_tokens, predicted_loss
from counting.cost.scaling_laws.inverses import log_optimal_parameters, reducible_loss, training_flops_for_loss
from counting.cost.scaling_laws.law import constants_of
from counting.cost.scaling_laws.optimum import log_optimum
from counting.cost.scaling_laws.repeated_tokens import (
    MUENNIGHOFF_2023,
    RepeatDecay,
    data_limited_optimum,
    effective_sizes,
    log_data_limited_optimum,
    loss_with_repeats,
    lowest_loss,
)
from tests.counting.cost.scaling_laws.own_laws import COURSE, draws_near, law_of
from torch_models.errors import UserError

C4 = find_law("muennighoff-2023")  # beside which the decay was fitted
NO_DECAY = RepeatDecay(
    repeated_tokens=1e12,
    excess_parameters=1e12,
    name="none",
    source="repeated tokens are as good as new",
    most_parameters=inf,
    most_tokens=inf,
    most_epochs=inf,
)
by_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
budgets = pytest.mark.parametrize("training_flops", [1e20, 5.616e23, 1e26])


@pytest.mark.parametrize(
    ("parameters", "tokens", "loss"), [(6.34e9, 242e9, 2.2256440889984477), (8.67e9, 178e9, 2.2269634075087867)]
)
def test_the_losses_that_the_authors_print(parameters: float, tokens: float, loss: float) -> None:
    # huggingface/datablations, README: the two models of figure 1 on 25 billion unique tokens.
    assert loss_with_repeats(C4, parameters, tokens, 25e9) == pytest.approx(loss, rel=1e-14)


def test_the_optimum_that_the_authors_print() -> None:
    # The same README, by a grid in steps of 0.4 %: 10^22 FLOPs, 25 billion unique tokens -> 237.337 billion tokens,
    # 9.493 epochs, 7.02236 billion parameters. This optimum is not on their grid, so it must be a little better.
    best = data_limited_optimum(C4, 1e22, 25 * 10**9)
    assert best.tokens == pytest.approx(237336955477.55, rel=2e-3)
    assert best.epochs == pytest.approx(9.49347821910203, rel=2e-3)
    assert best.parameters == pytest.approx(7022364735.88, rel=2e-3)
    assert best.predicted_loss <= loss_with_repeats(C4, 7022364735.879969, 237336955477.55075, 25e9)


def test_effective_tokens_by_hand() -> None:
    # Appendix A's example: R* = 3, one token for five epochs: 1 + 3 (1 - e^(-4/3)) = 1 + 3 (1 - 0.2635971) = 3.2092086
    # (3.21 in the paper), and for ever 4. One parameter is what the token can use, so it is not in excess.
    decay = RepeatDecay(
        name="example",
        repeated_tokens=3,
        excess_parameters=3,
        source="",
        most_parameters=inf,
        most_tokens=inf,
        most_epochs=inf,
    )
    assert effective_sizes(constants_of(C4), 0.01, 5, 1, decay) == pytest.approx((0.01, 3.2092086), abs=1e-7)
    assert effective_sizes(constants_of(C4), 0.01, 1e9, 1, decay)[1] == pytest.approx(4)


def test_effective_parameters_by_hand() -> None:
    # With alpha = beta, U_N = U_D G^2, where G^2 = (A / B)^(1 / alpha) = e^((6.255414 - 7.3049974) / 0.3526596)
    # = 0.0509865, the paper's 0.051. Ten times U_N: 1 + 5.309743 (1 - e^(-9 / 5.309743)) = 5.334876.
    usable = exp(log_optimal_parameters(constants_of(C4), log(10**10)))
    assert usable / 10**10 == pytest.approx(0.0509865, abs=5e-8)
    assert effective_sizes(constants_of(C4), 10 * usable, 10**10, 10**10)[0] / usable == pytest.approx(
        5.334876, abs=1e-6
    )


def least_loss(law: ScalingLaw, training_flops: float, unique_tokens: float) -> tuple[float, float]:
    """The lowest loss on 6 N D = C and its N, on a grid over fifteen orders of magnitude of N, twice refined."""
    low, high = log(1e3), log(1e18)
    for _ in range(3):
        grid = [low + (high - low) * step / 600 for step in range(601)]
        losses = [loss_with_repeats(law, exp(x), training_flops / (6 * exp(x)), unique_tokens) for x in grid]
        best = losses.index(min(losses))
        low, high = grid[max(best - 2, 0)], grid[min(best + 2, 600)]
    return losses[best], exp(grid[best])


@by_law
@budgets
@pytest.mark.parametrize("unique_tokens", [10**10, 3 * 10**11, 10**13])
def test_the_optimum_is_the_numerical_minimum(law: ScalingLaw, training_flops: float, unique_tokens: int) -> None:
    best = data_limited_optimum(law, training_flops, unique_tokens)
    loss, parameters = least_loss(law, training_flops, unique_tokens)
    assert best.predicted_loss == pytest.approx(loss, rel=1e-9)
    if best.epochs < 100:  # beyond, the loss is flat: no search finds the place
        assert best.parameters == pytest.approx(parameters, rel=1e-3)


@by_law
@budgets
def test_enough_unique_tokens_give_the_plain_optimum(law: ScalingLaw, training_flops: float) -> None:
    plain = compute_optimum(law, training_flops)
    best = data_limited_optimum(law, training_flops, plain.tokens)
    assert (best.parameters, best.tokens, best.epochs) == (plain.parameters, plain.tokens, 1.0)
    assert best.predicted_loss == best.unlimited_loss == pytest.approx(best.plain_loss)
    assert best.unlimited_flops == pytest.approx(training_flops, rel=1e-6)
    # A little less than enough: the optimum moves little.
    fewer = data_limited_optimum(law, training_flops, round(0.999 * plain.tokens))
    assert fewer.parameters == pytest.approx(plain.parameters, rel=2e-3)
    assert fewer.predicted_loss == pytest.approx(best.predicted_loss, rel=1e-6)


@by_law
@budgets
def test_repetitions_as_good_as_new_tokens_give_the_plain_optimum(law: ScalingLaw, training_flops: float) -> None:
    plain = compute_optimum(law, training_flops)
    best = data_limited_optimum(law, training_flops, plain.tokens // 10, NO_DECAY)
    assert best.parameters == pytest.approx(plain.parameters, rel=1e-5)
    assert best.predicted_loss == pytest.approx(best.unlimited_loss, rel=1e-9)


@by_law
@budgets
def test_fewer_unique_tokens_are_never_better(law: ScalingLaw, training_flops: float) -> None:
    rows = [data_limited_optimum(law, training_flops, 10**power) for power in range(8, 15)]
    losses = [row.predicted_loss for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]
    for row in rows:
        assert row.lowest_loss < row.predicted_loss + 1e-12
        assert row.unlimited_loss <= row.predicted_loss <= row.plain_loss + 1e-12
        assert row.unlimited_flops <= training_flops * (1 + 1e-6)
        assert 6 * row.parameters * row.tokens <= training_flops


def test_endless_compute_ends_at_the_lowest_loss() -> None:
    # E + A / (U_N (1 + R_N*))^alpha + B / (U (1 + R_D*))^beta
    assert data_limited_optimum(C4, 1e30, 10**9).predicted_loss == pytest.approx(lowest_loss(C4, 10**9), rel=1e-12)
    assert data_limited_optimum(C4, 1e21, 10**9).predicted_loss > lowest_loss(C4, 10**9)


@by_law
@budgets
def test_the_flops_for_a_loss_undo_the_optimum(law: ScalingLaw, training_flops: float) -> None:
    plain = compute_optimum(law, training_flops)
    reducible = reducible_loss(law, plain.parameters, plain.tokens)
    assert reducible == pytest.approx(predicted_loss(law, plain.parameters, plain.tokens) - law.irreducible_loss.value)
    assert training_flops_for_loss(law, reducible) == pytest.approx(training_flops, rel=1e-6)


@by_law
def test_optimal_parameters_and_optimal_tokens_undo_each_other(law: ScalingLaw) -> None:
    log_tokens = log(optimal_tokens(law, 7 * 10**9))
    assert exp(log_optimal_parameters(constants_of(law), log_tokens)) == pytest.approx(7e9, rel=1e-12)


@pytest.mark.parametrize(
    ("training_flops", "unique_tokens", "limit"),
    [
        (1e22, 25 * 10**9, None),
        (1e23, 10**14, "parameters"),  # 29 billion on 570 billion
        (1.2e22, 10**6, "epochs"),  # and levelled off
        (1e24, 10**9, "tokens"),
    ],
)
def test_extrapolation_is_said(training_flops: float, unique_tokens: int, limit: str | None) -> None:
    """Beyond 9 billion parameters, 900 billion tokens or 500 epochs of the decay, of a law without ends."""
    law = replace(C4, fitted_parameters=(1, 1e30), fitted_tokens=(1, 1e30))
    best = data_limited_optimum(law, training_flops, unique_tokens)
    beyond = {"parameters": best.parameters > 9e9, "tokens": best.tokens > 900e9, "epochs": best.epochs > 500}
    assert best.extrapolated == any(beyond.values())
    assert limit is None or beyond[limit]
    for changed in ("most_parameters", "most_tokens", "most_epochs"):
        only = {name: inf for name in ("most_parameters", "most_tokens", "most_epochs") if name != changed}
        of_one = data_limited_optimum(law, training_flops, unique_tokens, replace(MUENNIGHOFF_2023, **only))
        assert of_one.extrapolated == beyond[changed.removeprefix("most_")]
    inside = replace(C4, fitted_parameters=(1, 1e30), fitted_tokens=(1, 10))
    assert data_limited_optimum(inside, training_flops, unique_tokens).extrapolated


def test_what_the_limit_costs_is_beside_it() -> None:
    best = data_limited_optimum(C4, 1e22, 25 * 10**9)
    plain = compute_optimum(C4, 1e22)
    assert best.unlimited_share == best.unlimited_flops / 1e22 < 1
    assert best.plain_epochs == plain.tokens / 25e9
    assert best.tokens_per_parameter == best.tokens / best.parameters
    assert best.epochs == best.tokens / 25e9


@by_law
def test_a_draw_with_enough_unique_tokens_has_its_plain_optimum(law: ScalingLaw) -> None:
    constants = constants_of(law)
    assert log_data_limited_optimum(constants, 1e22, 10**15) == log_optimum(constants, 1e22)


@by_law
@pytest.mark.parametrize("training_flops", [200, 10**6])
def test_one_unique_token_has_an_answer_still(law: ScalingLaw, training_flops: float) -> None:
    best = data_limited_optimum(law, training_flops, 1)
    assert best.parameters >= 1
    assert best.tokens >= 1
    assert 6 * best.parameters * best.tokens <= training_flops


def test_a_budget_for_no_model_is_refused() -> None:
    with pytest.raises(UserError, match="too few for any model"):
        data_limited_optimum(C4, 5, 10**9)


def test_intervals_are_those_of_every_draw_as_a_law() -> None:
    draws = draws_near(COURSE)
    found = data_limited_optimum(law_of(COURSE, *draws), 5.616e23, 10**11)
    each = [data_limited_optimum(law_of(draw), 5.616e23, 10**11) for draw in draws]
    losses = [loss_with_repeats(law_of(draw), found.parameters, found.tokens, 10**11) for draw in draws]
    assert found.intervals is not None
    for interval, values in (
        (found.intervals.parameters, [one.parameters for one in each]),
        (found.intervals.tokens, [one.tokens for one in each]),
        (found.intervals.tokens_per_parameter, [one.tokens_per_parameter for one in each]),
        (found.intervals.loss, losses),
    ):
        assert [interval.low, interval.high] == pytest.approx(np.percentile(values, [2.5, 97.5]), rel=1e-7)
    assert each[0].intervals is None


def test_draws_that_are_far_off_give_an_interval_still() -> None:
    extreme = [(0.0, 1e300, 1e-300, 1e-3, 1e-3)] * 20 + [(1.0, 1e-300, 1e300, 3.0, 3.0)] * 20
    intervals = data_limited_optimum(law_of(COURSE, *extreme), 5.616e23, 10**11).intervals
    assert intervals is not None
    assert intervals.parameters.low <= intervals.parameters.high < inf
    assert 0 <= intervals.loss.low <= intervals.loss.high
