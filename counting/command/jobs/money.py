"""What a budget or a comparison adds to the analyses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counting.analysis import Analysis
from counting.command.flags.laws import ChosenLaws
from counting.command.progress import Progress
from counting.cost.budget import BudgetPlan
from counting.cost.run import RunPlan

if TYPE_CHECKING:
    from counting.cost.beyond_compute import BeyondCompute
    from counting.cost.budget_on_model import BudgetOnModel
    from counting.cost.comparison import Comparison
    from counting.cost.design import Design
    from counting.cost.scaling_laws.side_by_side import LawsSideBySide


def compared(analyses: Sequence[Analysis], plan: RunPlan) -> "Comparison":
    """The models side by side."""
    from counting.cost.comparison import compare

    return compare(analyses, plan)


def spent_on_models(analyses: Sequence[Analysis], budget: BudgetPlan) -> "list[BudgetOnModel]":
    """The budget spent on each model."""
    from counting.cost.budget_on_model import spend_on

    return [spend_on(analysis, budget) for analysis in analyses]


def beyond_compute_of(
    asked: Mapping[str, Any], budget: BudgetPlan | None, analyses: Sequence[Analysis], spent: "Sequence[BudgetOnModel]"
) -> "BeyondCompute | None":
    """What is `asked` of the budget beyond plain compute; a given mixture of experts asks for its own law."""
    mixture = any(model.mixture_of_experts for model in spent)
    if budget is None or not (mixture or any(value is not None for value in asked.values())):
        return None
    from counting.cost.beyond_compute import beyond_compute

    return beyond_compute(budget, analyses, spent, **asked)


def side_by_side(laws: ChosenLaws, budget: BudgetPlan, analyses: Sequence[Analysis]) -> "LawsSideBySide | None":
    """The laws beside the one that the budget follows, converted by the first dense model; None if one is named."""
    if not laws.beside:
        return None
    from counting.cost.scaling_laws.shapes import shape_of
    from counting.cost.scaling_laws.side_by_side import laws_side_by_side

    shapes = (shape_of(analysis) for analysis in analyses)
    shape = next((shape for shape in shapes if shape is not None), None)
    return laws_side_by_side(budget.training_flops, laws.followed, laws.beside, shape)


def check_design_family(name: str | None) -> None:
    """Raises ArgumentError if there is no design family of this name."""
    if name is not None:
        from counting.cost.design import find_design_family

        find_design_family(name)


def designed(budget: BudgetPlan, path: str, family: str | None, progress: Progress) -> "Design":
    """The model of `family` designed for the budget, named as the file `path`."""
    from counting.cost.design import DEFAULT_DESIGN_FAMILY, design_for_budget

    progress.show("designing a model ...")
    return design_for_budget(budget, Path(path).stem, family or DEFAULT_DESIGN_FAMILY)
