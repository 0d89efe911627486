"""Ratios of published models by size: exact at a model, a power of the size in between."""

from math import log

import pytest

from counting.cost.design.trend import trend_at

POINTS = [(10, 2.0), (1000, 8.0), (10_000, 4.0)]


@pytest.mark.parametrize(("size", "ratio"), POINTS)
def test_at_a_point_it_is_that_point(size: int, ratio: float) -> None:
    assert trend_at(size, POINTS).ideal == ratio


def test_between_two_points_it_is_a_power_of_the_size() -> None:
    # Half way from 10 to 1000 by logarithm is 100; half way from 2 to 8 is 4.
    assert trend_at(100, POINTS).ideal == pytest.approx(4)
    # A third of the way from 1000 to 10,000 is 2154; a third of the way from 8 to 4 is 8 / 2^(1/3).
    assert trend_at(2154, POINTS).ideal == pytest.approx(8 / 2 ** (1 / 3), rel=1e-4)


def test_beyond_the_ends_it_is_constant() -> None:
    assert trend_at(1, POINTS).ideal == 2
    assert trend_at(10**6, POINTS).ideal == 4


def test_further_models_widen_the_range_alone() -> None:
    assert trend_at(100, POINTS, published=[1.5, 9.0]).ideal == trend_at(100, POINTS).ideal
    trend = trend_at(100, POINTS, published=[1.5, 9.0])
    assert (trend.lowest, trend.highest) == (1.5, 9.0)
    assert [trend.admits(value) for value in (1.4, 1.5, 9.0, 9.1)] == [False, True, True, False]


def test_a_deviation_of_ten_percent_counts_one() -> None:
    trend = trend_at(10, POINTS)
    assert [trend.penalty(value) for value in (2.0, 2.2)] == [0, pytest.approx(1)]
    assert trend.penalty(2 * 1.1**3) == pytest.approx(3)
    assert trend.penalty(1.0) == pytest.approx(log(2) / log(1.1))
