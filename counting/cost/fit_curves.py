"""A fitted law as curves beside the runs that it was fitted to: over N at the budgets of the runs, and over budgets."""

from math import exp, log
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from counting.cost.scaling_laws.curve import LossCurve, loss_curve
from counting.cost.scaling_laws.law import ScalingLaw, predicted_loss
from counting.cost.scaling_laws.optimum import FLOPS_PER_PARAMETER_AND_TOKEN, compute_optimum
from torch_models.errors import UserError

if TYPE_CHECKING:
    from counting.cost.fit.result import FittedLaw, IsoflopBudget

POINTS_OF_A_BUDGET, POINTS_OF_THE_FRONTIER = 41, 61
BEYOND_THE_RUNS = 1.3  # times the largest model of a budget, and its inverse times the smallest


class BudgetCurve(NamedTuple):
    """The law at one budget, over the sizes of its runs and a little beyond."""

    budget: "IsoflopBudget"
    curve: LossCurve


class FitCurves(NamedTuple):
    """The law at each budget that several runs share, and its optimum over all budgets of the runs."""

    budgets: tuple[BudgetCurve, ...]  # empty where runs share no budgets
    training_flops: tuple[float, ...]
    lowest_loss: tuple[
        float, ...
    ]  # at the law's optimum for each of `training_flops`; budgets without one are left out


def fit_curves(fitted: "FittedLaw") -> FitCurves:
    """The curves of the law that was fitted; its constants as they are, without the draws of its bootstrap."""
    law = msgspec.structs.replace(fitted.law, bootstrap=())
    of_six = FLOPS_PER_PARAMETER_AND_TOKEN / fitted.flops_per_parameter_and_token  # the law's FLOPs over the runs'
    by_line = {run.line: run for run in fitted.runs}
    curves = []
    for budget in () if fitted.isoflop is None else fitted.isoflop.budgets:
        sizes = [by_line[line].parameters for line in budget.lines]
        try:
            curve = loss_curve(
                law,
                budget.training_flops * of_six,
                fewest=min(sizes) / BEYOND_THE_RUNS,
                most=max(sizes) * BEYOND_THE_RUNS,
                points=POINTS_OF_A_BUDGET,
            )
        except UserError:  # runs of less than one parameter, or token
            continue
        curves.append(BudgetCurve(budget, curve))
    low, high = (log(end(run.training_flops for run in fitted.runs)) for end in (min, max))
    steps = POINTS_OF_THE_FRONTIER - 1
    flops = tuple(exp(low + (high - low) * point / steps) for point in range(POINTS_OF_THE_FRONTIER))
    found = {each: loss for each in flops if (loss := _lowest_loss(law, each * of_six)) is not None}
    return FitCurves(tuple(curves), tuple(found), tuple(found.values()))


def _lowest_loss(law: ScalingLaw, six_n_d: float) -> float | None:
    """The loss at the law's optimum; None where it has none, as of a law that the runs do not decide."""
    try:
        best = compute_optimum(law, six_n_d)
    except UserError:
        return None
    return predicted_loss(law, best.parameters, best.tokens)
