"""The cost of following another law than the one that holds: closed forms against the laws themselves."""

from math import exp, log

import pytest

from counting.cost.scaling_laws import LAWS, ScalingLaw, compute_optimum, predicted_loss
from counting.cost.scaling_laws.wrong_choice import excess_loss, laws_apart, wasted_compute
from tests.counting.cost.scaling_laws.own_laws import law_of

FLOPS = 5.616e23
EVEN = law_of((1.0, 1000.0, 1000.0, 0.5, 0.5))
every_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
ratios = pytest.mark.parametrize("ratio", [0.05, 0.6, 1.0, 1.5, 40.0])


def test_by_hand() -> None:
    """A = B and alpha = beta = 1/2: N* = D* = (C / 6)^(1/2) = 10^10 at C = 6 x 10^20.

    There 1000 / 10^5 twice is 0.02 above E. Four times N on a quarter of D: 1000 / (2 x 10^5) + 1000 / (5 x 10^4) =
    0.025. N = D = 6.4 x 10^9 reach that too (1000 / (8 x 10^4) twice), with 0.64^2 = 0.4096 of the FLOPs.
    """
    assert excess_loss(EVEN, 6e20, 4e10) == pytest.approx(0.005, rel=1e-12)
    assert wasted_compute(EVEN, 6e20, 4e10) == pytest.approx(0.5904, rel=1e-12)


def best_loss(law: ScalingLaw, training_flops: float) -> float:
    """The least loss on 6 N D = C, by ternary search over log N; knows nothing of a closed form."""

    def loss(log_parameters: float) -> float:
        return predicted_loss(law, exp(log_parameters), training_flops / 6 / exp(log_parameters))

    low, high = log(1e5), log(1e16)
    while high - low > 1e-7:
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return loss((low + high) / 2)


@every_law
@ratios
def test_the_excess_is_the_difference_to_the_numerical_minimum(law: ScalingLaw, ratio: float) -> None:
    parameters = ratio * compute_optimum(law, FLOPS).parameters
    trained = predicted_loss(law, parameters, FLOPS / (6 * parameters))
    assert excess_loss(law, FLOPS, parameters) == pytest.approx(trained - best_loss(law, FLOPS), abs=1e-12)


@every_law
@ratios
def test_what_is_not_wasted_reaches_the_same_loss(law: ScalingLaw, ratio: float) -> None:
    parameters = ratio * compute_optimum(law, FLOPS).parameters
    trained = predicted_loss(law, parameters, FLOPS / (6 * parameters))
    needed = (1 - wasted_compute(law, FLOPS, parameters)) * FLOPS
    assert best_loss(law, needed) == pytest.approx(trained, abs=1e-10)


@every_law
def test_nothing_is_lost_at_the_optimum(law: ScalingLaw) -> None:
    best = compute_optimum(law, FLOPS).parameters
    assert 0 <= excess_loss(law, FLOPS, best) < 1e-15
    assert 0 <= wasted_compute(law, FLOPS, best) < 1e-12


def test_the_laws_at_five_million_dollars() -> None:
    """18 to 92 tokens per parameter; every ordered pair of five laws is twenty."""
    apart = laws_apart(LAWS[0], FLOPS)
    assert [optimum.law for optimum in apart.optima] == [law.name for law in LAWS]
    for optimum, law in zip(apart.optima, LAWS, strict=True):
        assert optimum.parameters == pytest.approx(compute_optimum(law, FLOPS).parameters, rel=1e-9)
        assert optimum.tokens == pytest.approx(compute_optimum(law, FLOPS).tokens, rel=1e-9)
    fewest, most = apart.fewest_tokens_per_parameter, apart.most_tokens_per_parameter
    assert (fewest.law, f"{fewest.tokens_per_parameter:.1f}") == ("besiroglu-2024", "18.4")
    assert (most.law, f"{most.tokens_per_parameter:.1f}") == ("hoffmann-2022", "92.4")
    assert len({(choice.holds, choice.followed) for choice in apart.wrong_choices}) == 20
    followed = [choice for choice in apart.wrong_choices if choice.followed == "course"]
    assert apart.costliest == max(followed, key=lambda choice: choice.excess_loss)
    assert apart.costliest.holds == "hoffmann-2022"
    best, held = compute_optimum(LAWS[0], FLOPS), LAWS[1]
    excess = predicted_loss(held, best.parameters, best.tokens) - best_loss(held, FLOPS)
    assert apart.costliest.excess_loss == pytest.approx(excess, abs=1e-12)


def test_a_law_of_one_s_own_is_the_first() -> None:
    apart = laws_apart(EVEN, FLOPS)
    assert [optimum.law for optimum in apart.optima] == ["own", *(law.name for law in LAWS)]
    assert apart.costliest.followed == "own"
