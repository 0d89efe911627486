"""Curves of a fitted law beside its runs: at the budgets that runs share, and the best loss over all budgets."""

import pytest

from counting.cost.fit_curves import fit_curves
from counting.cost.scaling_laws import predicted_loss
from tests.counting.report.figures.results import fitted_law


def test_each_budget_has_its_curve_over_the_sizes_of_its_runs() -> None:
    fitted = fitted_law()
    curves = fit_curves(fitted)
    assert [each.budget.training_flops for each in curves.budgets] == [1e19, 1e20]
    for each in curves.budgets:
        assert each.curve.parameters[0] == pytest.approx(1e8 / 1.3)
        assert each.curve.parameters[-1] == pytest.approx(1e9 * 1.3)
        for size, tokens, loss in zip(each.curve.parameters, each.curve.tokens, each.curve.loss, strict=True):
            assert 6 * size * tokens == pytest.approx(each.budget.training_flops)
            assert loss == predicted_loss(fitted.law, size, tokens)


def test_the_best_loss_falls_and_is_below_every_curve() -> None:
    curves = fit_curves(fitted_law())
    assert curves.training_flops[0] == pytest.approx(1e19)
    assert curves.training_flops[-1] == pytest.approx(6e20)
    assert list(curves.lowest_loss) == sorted(curves.lowest_loss, reverse=True)
    assert curves.lowest_loss[0] <= min(curves.budgets[0].curve.loss)
