"""The curve of the loss over model sizes."""

import pytest

from counting.cost.scaling_laws import LAWS, compute_optimum, loss_interval, optimum_intervals, predicted_loss
from counting.cost.scaling_laws.curve import loss_curve
from tests.counting.cost.scaling_laws.own_laws import law_of

FLOPS = 5.616e23


def test_the_lowest_point_is_the_optimum() -> None:
    curve, best = loss_curve(LAWS[0], FLOPS), compute_optimum(LAWS[0], FLOPS)
    assert curve.optimum == best
    lowest = curve.loss.index(min(curve.loss))
    assert curve.parameters[lowest] == pytest.approx(best.parameters, rel=1e-9)
    assert min(curve.loss) == pytest.approx(curve.optimum_loss, rel=1e-12)
    assert curve.parameters[0] == pytest.approx(best.parameters / 30)
    assert curve.parameters[-1] == pytest.approx(best.parameters * 30)
    assert [6 * n * d for n, d in zip(curve.parameters, curve.tokens, strict=True)] == pytest.approx([FLOPS] * 121)
    assert (curve.low_loss, curve.high_loss, curve.intervals) == (None, None, None)


def test_it_goes_from_and_to_what_is_asked_for() -> None:
    curve = loss_curve(LAWS[1], FLOPS, fewest=1e9, most=1e12, points=4)
    assert curve.parameters == pytest.approx([1e9, 1e10, 1e11, 1e12])
    assert curve.loss[1] == pytest.approx(predicted_loss(LAWS[1], 1e10, FLOPS / 6e10))


def test_a_law_with_draws_has_a_band() -> None:
    law = law_of((1.69, 406.4, 410.7, 0.34, 0.29), *((1.6 + n / 300, 406.4, 410.7, 0.34, 0.29) for n in range(60)))
    curve = loss_curve(law, FLOPS, points=5)
    assert curve.intervals == optimum_intervals(law, FLOPS)
    assert curve.low_loss is not None
    assert curve.high_loss is not None
    band = loss_interval(law, curve.parameters[3], curve.tokens[3])
    assert band is not None
    assert (curve.low_loss[3], curve.high_loss[3]) == (band.low, band.high)
