"""What there is to report."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from counting.analysis import Analysis
    from counting.cost.budget import BudgetPlan
    from counting.cost.budget_on_model import BudgetOnModel
    from counting.cost.comparison import Comparison
    from counting.cost.design_for_budget import Design
    from counting.cost.run import TrainingRun
    from counting.published.claim import Claim
    from counting.published.runs import ExaminedRun
    from counting.step.fits import Fit


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """All that one command found out; what was not asked for is empty or None."""

    analyses: Sequence["Analysis"] = ()
    runs: Sequence["TrainingRun"] = ()
    comparison: "Comparison | None" = None
    budget: "BudgetPlan | None" = None
    spent: Sequence["BudgetOnModel"] = ()  # the budget on each of the analysed models
    design: "Design | None" = None
    published: "Sequence[ExaminedRun] | None" = None
    claim: "Claim | None" = None
    warnings: Sequence[str] = ()  # one line each
    plan: dict[str, object] | None = None  # what was asked for, so that the same results can be had again
    # Of each analysis, whether its step fits the GPUs of the catalogue: for the first screen, and in no document.
    on_catalogue: "Sequence[tuple[Fit, ...]]" = ()
