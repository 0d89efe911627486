"""What a budget or a comparison adds to the analyses."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from counting.analysis import Analysis
from counting.command.progress import Progress
from counting.cost.budget import BudgetPlan
from counting.cost.run import RunPlan

if TYPE_CHECKING:
    from counting.cost.budget_on_model import BudgetOnModel
    from counting.cost.comparison import Comparison
    from counting.cost.design import Design


def compared(analyses: Sequence[Analysis], plan: RunPlan) -> "Comparison":
    """The models side by side."""
    from counting.cost.comparison import compare

    return compare(analyses, plan)


def spent_on_models(analyses: Sequence[Analysis], budget: BudgetPlan) -> "list[BudgetOnModel]":
    """The budget spent on each model."""
    from counting.cost.budget_on_model import spend_on

    return [spend_on(analysis, budget) for analysis in analyses]


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
