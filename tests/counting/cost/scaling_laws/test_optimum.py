"""The laws, and the closed form of their optimum against a numerical minimiser."""

from math import exp, log, sqrt

import pytest

from counting.cost.scaling_laws import (
    LAWS,
    ScalingLaw,
    affordable_tokens,
    compute_optimum,
    extrapolates,
    find_law,
    optimal_tokens,
    predicted_loss,
)
from torch_models.errors import UserError

law_by_name = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
CHINCHILLA_FLOPS = 5.76e23


def minimise_loss(law: ScalingLaw, training_flops: float) -> float:
    """The N of least loss on 6 N D = C by golden-section search over log N; knows nothing of the closed form."""

    def loss(log_parameters: float) -> float:
        parameters = exp(log_parameters)
        return predicted_loss(law, parameters, training_flops / (6 * parameters))

    low, high, shrink = log(1e6), log(1e15), (sqrt(5) - 1) / 2
    while high - low > 1e-9:
        left, right = high - shrink * (high - low), low + shrink * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return exp((low + high) / 2)


@law_by_name
@pytest.mark.parametrize("training_flops", [1e19, 5.616e23, 1e27])
def test_closed_form_is_the_numerical_minimum(law: ScalingLaw, training_flops: float) -> None:
    # Near its minimum a function in float64 is flat to sqrt(1e-16): no search finds the place more exactly than that.
    found = minimise_loss(law, training_flops)
    assert compute_optimum(law, training_flops).parameters == pytest.approx(found, rel=1e-6)


@law_by_name
@pytest.mark.parametrize("training_flops", [1e19, 5.616e23, 1e27])
def test_no_neighbour_on_the_budget_is_better(law: ScalingLaw, training_flops: float) -> None:
    best = compute_optimum(law, training_flops).parameters
    losses = [predicted_loss(law, n, training_flops / (6 * n)) for n in (best, 0.99 * best, 1.01 * best)]
    assert losses[0] < min(losses[1:])


@law_by_name
@pytest.mark.parametrize("training_flops", [1e19, 5.616e23, 1e27])
def test_the_tokens_for_which_a_size_is_best_are_those_of_its_optimum(law: ScalingLaw, training_flops: float) -> None:
    best = compute_optimum(law, training_flops)
    assert optimal_tokens(law, best.parameters) == pytest.approx(best.tokens, rel=1e-6)


@law_by_name
@pytest.mark.parametrize("training_flops", [1e3, 1e15 + 1, 1.234567e19, 5.616e23, 9.9e29])
def test_the_budget_is_met_and_not_exceeded(law: ScalingLaw, training_flops: float) -> None:
    optimum = compute_optimum(law, training_flops)
    spent = 6 * optimum.parameters * optimum.tokens
    assert spent <= training_flops < spent + 6 * optimum.parameters


@pytest.mark.parametrize(
    ("name", "billions"),
    [("course", 48.0), ("hoffmann-2022", 32.2), ("hoffmann-2022-unrounded", 40.4), ("besiroglu-2024", 72.2)],
)
def test_chinchillas_compute_by_law(name: str, billions: float) -> None:
    # The first three are reference figures (the paper itself says 40 billion); the last is ours.
    assert compute_optimum(find_law(name), CHINCHILLA_FLOPS).parameters / 1e9 == pytest.approx(billions, abs=0.05)


def test_predicted_loss_by_hand() -> None:
    # N = D = 10^10: 10^3.4 = 2511.8864, 10^2.9 = 794.32823; 1.69 + 406.4 / 2511.8864 + 410.7 / 794.32823
    assert predicted_loss(find_law("course"), 10**10, 10**10) == pytest.approx(1.69 + 0.16179075 + 0.51704067, abs=1e-7)


@law_by_name
def test_loss_falls_to_the_irreducible_one(law: ScalingLaw) -> None:
    losses = [predicted_loss(law, n, n) for n in (1e9, 1e12, 1e60)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(law.irreducible_loss.value)


def test_the_unrounded_constants_round_to_the_printed_ones() -> None:
    unrounded, printed = find_law("hoffmann-2022-unrounded"), find_law("hoffmann-2022")
    assert unrounded.irreducible_loss.value == pytest.approx(printed.irreducible_loss.value, abs=0.005)
    assert unrounded.parameter_coefficient.value == pytest.approx(printed.parameter_coefficient.value, abs=0.05)
    assert unrounded.token_coefficient.value == pytest.approx(printed.token_coefficient.value, abs=0.05)
    assert unrounded.parameter_exponent.value == pytest.approx(printed.parameter_exponent.value, abs=0.005)
    assert unrounded.token_exponent.value == pytest.approx(printed.token_exponent.value, abs=0.005)


@pytest.mark.parametrize(
    ("parameters", "tokens", "expected"),
    [
        (1e9, 1e11, False),
        (70e6, 5e9, False),
        (16e9, 500e9, False),
        (69e6, 1e11, True),
        (47e9, 1e11, True),
        (1e9, 4e9, True),
        (1e9, 2e12, True),
    ],
)
def test_extrapolation(parameters: float, tokens: float, expected: bool) -> None:
    assert extrapolates(find_law("course"), parameters, tokens) is expected


@pytest.mark.parametrize(("flops", "cost", "tokens"), [(100.0, 7, 14), (98.0, 7, 14), (97.9, 7, 13), (6.9, 7, 0)])
def test_affordable_tokens(flops: float, cost: int, tokens: int) -> None:
    assert affordable_tokens(flops, cost) == tokens


@pytest.mark.parametrize("training_flops", [0.0, 1e-300, 5.0])
def test_too_little_compute_is_an_error(training_flops: float) -> None:
    with pytest.raises(
        UserError, match=r"training FLOPs are too few for any model: give a larger budget or utilisation"
    ):
        compute_optimum(find_law("course"), training_flops)


def test_a_law_is_found_in_any_case() -> None:
    assert find_law(" Besiroglu-2024 ").name == "besiroglu-2024"


def test_an_unknown_law_is_an_error_that_lists_the_known_ones() -> None:
    known = "course, hoffmann-2022, hoffmann-2022-unrounded, besiroglu-2024, muennighoff-2023"
    with pytest.raises(
        UserError,
        match=f"^scaling_law = 'kaplan': is not known: choose from {known}, or name a file of a law, as law.json$",
    ):
        find_law("kaplan")
