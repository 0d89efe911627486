"""Approach 2: parabolas and power laws by hand, budgets that are left out, and which runs are of one budget."""

from collections.abc import Sequence
from math import e, log

import numpy as np
import pytest

from counting.cost.fit import TrainedRun
from counting.cost.fit.budgets import repeated_budgets
from counting.cost.fit.isoflop import fit_isoflops, parabolas
from tests.counting.cost.fit.known_law import runs_of


def run(line: int, flops: float, parameters: float, loss: float) -> TrainedRun:
    return TrainedRun(
        line=line, parameters=parameters, tokens=flops / (6 * parameters), training_flops=flops, loss=loss
    )


def bowl(
    flops: float, best: float, lowest: float, first_line: int = 2, steps: Sequence[int] = (-2, -1, 1, 2)
) -> list[TrainedRun]:
    """Runs whose loss is lowest + (log N - log best)^2 / 10, at N = best e^step."""
    return [run(first_line + index, flops, best * e**step, lowest + step**2 / 10) for index, step in enumerate(steps)]


def test_parabola_through_three_points_by_hand() -> None:
    """y = 2 + (x - 1)^2 at x = 0, 2, 3: 3, 3, 6. Around the mean 5/3: y = 22/9 + 4/3 (x - mean) + (x - mean)^2."""
    found = parabolas(np.array([0.0, 2.0, 3.0]), np.array([3.0, 3.0, 6.0]), np.ones((1, 3)))
    assert found.mean == pytest.approx(5 / 3)
    assert found.constants_B3[0] == pytest.approx([22 / 9, 4 / 3, 1])
    assert found.minimum_B == pytest.approx([1])
    assert found.loss_B == pytest.approx([2])


def test_weights_count_points_as_often() -> None:
    x, y = np.array([0.0, 1.0, 2.0, 4.0]), np.array([3.0, 2.2, 2.1, 4.0])
    weighted = parabolas(x, y, np.array([[2.0, 1.0, 3.0, 1.0]]))
    repeated = parabolas(np.repeat(x, [2, 1, 3, 1]), np.repeat(y, [2, 1, 3, 1]), np.ones((1, 7)))
    assert weighted.minimum_B == pytest.approx(repeated.minimum_B)
    assert weighted.loss_B == pytest.approx(repeated.loss_B)


def test_power_laws_by_hand() -> None:
    """Best N of 1e7 at 6e18, 1e8 at 6e20, 1e9 at 6e22: N = k C^0.5 with k = 1e7 / 6e18^0.5; and D = C / 6 N."""
    groups = [bowl(6e18, 1e7, 3.0), bowl(6e20, 1e8, 2.5, 6), bowl(6e22, 1e9, 2.2, 10)]
    budgets, laws = fit_isoflops(groups, resamples=100, seed=0)
    assert [budget.parameters for budget in budgets] == pytest.approx([1e7, 1e8, 1e9])
    assert [budget.tokens for budget in budgets] == pytest.approx([1e11, 1e12, 1e13])
    assert [budget.loss for budget in budgets] == pytest.approx([3.0, 2.5, 2.2])
    assert [budget.left_out for budget in budgets] == [None] * 3
    assert budgets[1].lines == (6, 7, 8, 9)
    assert laws is not None
    assert laws.fitted == pytest.approx((1e7 / 6e18**0.5, 0.5, 1e11 / 6e18**0.5, 0.5))
    assert len(laws.draws) > 50
    assert np.array(laws.draws) == pytest.approx(np.tile(laws.fitted, (len(laws.draws), 1)), rel=1e-6)


def test_the_parabola_is_in_the_logarithm_of_the_parameters() -> None:
    """loss = 3 + (x - log 1e7)^2 / 10 with x = log N, multiplied out."""
    (budget,), laws = fit_isoflops([bowl(6e18, 1e7, 3.0)], resamples=100, seed=0)
    assert budget.parabola == pytest.approx((3 + log(1e7) ** 2 / 10, -log(1e7) / 5, 1 / 10))
    assert laws is None, "one budget has no power law"


def test_budgets_without_a_best_size_are_left_out_with_the_reason() -> None:
    at_the_edge = bowl(1e19, 1e7, 3.0, steps=(1, 2, 3, 4))
    downwards = [
        run(2 + index, 1e20, size, loss)
        for index, (size, loss) in enumerate([(1e7, 2.9), (2e7, 3), (3e7, 3), (5e7, 2.8)])
    ]
    two_sizes = [run(2 + index, 1e21, size, 3 + index / 10) for index, size in enumerate([1e7, 1e7, 2e7, 2e7])]
    budgets, laws = fit_isoflops([at_the_edge, downwards, two_sizes, bowl(6e18, 1e7, 3.0)], resamples=100, seed=0)
    assert [budget.left_out for budget in budgets] == [
        "the lowest loss is at the smallest or the largest size, so that the best lies outside",
        "the losses bend downwards, so that no size is the best",
        "2 different sizes, and a parabola needs 3",
        None,
    ]
    assert [budget.parameters is None for budget in budgets] == [True, True, True, False]
    assert budgets[2].parabola is None
    assert laws is None


def test_intervals_hold_the_truth_of_noisy_runs() -> None:
    groups = [bowl(6e18 * 10**power, 1e7 * 10 ** (power / 2), 3.0, steps=range(-4, 5)) for power in range(5)]
    random = np.random.default_rng(0)
    noisy = [
        [
            TrainedRun(
                line=r.line,
                parameters=r.parameters,
                tokens=r.tokens,
                training_flops=r.training_flops,
                loss=r.loss + 0.02 * random.normal(),
            )
            for r in group
        ]
        for group in groups
    ]
    _, laws = fit_isoflops(noisy, resamples=200, seed=0)
    assert laws is not None
    low, high = np.percentile([draw[1] for draw in laws.draws], [2.5, 97.5])
    assert low < 0.5 < high
    assert 0.001 < high - low < 0.1
    assert fit_isoflops(noisy, resamples=200, seed=0)[1] == laws
    assert fit_isoflops(noisy, resamples=200, seed=1)[1] != laws


def test_runs_within_ten_percent_are_of_one_budget() -> None:
    flops = [1e18, 1.04e18, 1.1e18, 1.02e18, 1.2e18, 5e18, 5e18, 5e18, 9e18, 9.5e18, 9.8e18, 9.85e18]
    groups = repeated_budgets([run(2 + index, each, 1e7 * (index + 1), 3.0) for index, each in enumerate(flops)])
    assert [[each.training_flops for each in group] for group in groups] == [
        [1e18, 1.02e18, 1.04e18, 1.1e18],
        [9e18, 9.5e18, 9.8e18, 9.85e18],
    ]
    assert repeated_budgets(runs_of(budgets=(1e18, 1e19), sizes=3)) == ()
    assert [len(group) for group in repeated_budgets(runs_of())] == [6] * 4
