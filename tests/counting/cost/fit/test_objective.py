"""The objective of approach 3: its value by hand, its gradient by differences."""

from math import exp, log

import numpy as np
import pytest

from counting.cost.fit.objective import HuberObjective

# N = 100, alpha = 1/2, A = 10: A / N^alpha = 1. D = 1000, beta = 1/3, B = 20: B / D^beta = 2. E = 1. Together 4.
POINT = np.array([[log(10), log(20), 0.0, 1 / 2, 1 / 3]])


def objective(*losses: float) -> HuberObjective:
    return HuberObjective(np.full(len(losses), 100.0), np.full(len(losses), 1000.0), np.array(losses))


def value(of: HuberObjective, weights: list[float] | None = None) -> float:
    """The sum of Huber losses: the objective is divided by delta = 1e-3 and the number of runs."""
    values, _ = of(of.centred(POINT), None if weights is None else np.array([weights]))
    return float(values[0]) * 1e-3 * of.runs


def test_huber_loss_by_hand() -> None:
    """Hoffmann et al. 2022, eq. 3, with delta = 1e-3: r^2 / 2 within delta, delta (|r| - delta / 2) beyond."""
    assert value(objective(4.0)) == pytest.approx(0, abs=1e-20)
    assert value(objective(4 * exp(-0.0005))) == pytest.approx(0.0005**2 / 2)
    assert value(objective(4 * exp(0.01))) == pytest.approx(1e-3 * (0.01 - 0.0005))
    assert value(objective(4 * exp(-0.0005), 4 * exp(0.01))) == pytest.approx(1.25e-7 + 9.5e-6)


def test_a_weight_counts_a_run_as_often() -> None:
    close, far = 4 * exp(-0.0005), 4 * exp(0.01)
    assert value(objective(close, far), [2, 3]) == pytest.approx(value(objective(close, close, far, far, far)))
    assert value(objective(close, far), [0, 1]) == pytest.approx(9.5e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_is_that_of_differences(weighted: bool) -> None:
    random = np.random.default_rng(0)
    parameters, tokens = np.exp(random.uniform(16, 24, 30)), np.exp(random.uniform(20, 26, 30))
    of = HuberObjective(parameters, tokens, random.uniform(2, 4, 30))
    weights = random.integers(0, 3, (1, 30)).astype(float) if weighted else None
    point = of.centred(np.array([[6.0, 6.1, 0.5, 0.33, 0.27]]))
    _, gradient = of(point, weights)
    step = 1e-7
    differences = []
    for index in range(5):
        ends = [of(point + sign * step * np.eye(5)[index], weights)[0][0] for sign in (1, -1)]
        differences.append((ends[0] - ends[1]) / (2 * step))
    assert gradient[0] == pytest.approx(differences, rel=1e-5, abs=1e-6)


def test_centred_points_are_the_same_laws() -> None:
    of = HuberObjective(np.array([1e7, 1e9]), np.array([1e9, 1e11]), np.array([3.0, 2.5]))
    assert of.printed(of.centred(POINT)) == pytest.approx(POINT)
    centred = of.centred(POINT)[0]
    assert centred[0] == pytest.approx(log(10) - 0.5 * log(1e8)), "mean log N is that of 1e8"
    assert centred[2:] == pytest.approx(POINT[0, 2:])
