"""The results that a report prints."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from counting.analysis import Analysis
    from counting.calibration.found import FoundMachine
    from counting.calibration.steps import CalibratedCluster
    from counting.cost.beyond_compute import BeyondCompute
    from counting.cost.budget import BudgetPlan
    from counting.cost.budget_on_model import BudgetOnModel
    from counting.cost.comparison import Comparison
    from counting.cost.design import Design
    from counting.cost.run import TrainingRun
    from counting.cost.scaling_laws.side_by_side import LawsSideBySide
    from counting.published.claim import Claim
    from counting.published.memory import ExaminedMemory
    from counting.published.runs import ExaminedRun
    from counting.published.throughput import Throughput
    from counting.step.fit import Fit


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """All results of one command; those that were not requested are empty or None."""

    analyses: Sequence["Analysis"] = ()
    runs: Sequence["TrainingRun"] = ()
    comparison: "Comparison | None" = None
    budget: "BudgetPlan | None" = None
    laws: "LawsSideBySide | None" = None  # for the budget
    spent: Sequence["BudgetOnModel"] = ()  # the budget spent on each analysed model
    beyond: "BeyondCompute | None" = None  # of the budget: repeated tokens, serving, mixtures of experts
    design: "Design | None" = None
    published: "Sequence[ExaminedRun] | None" = None  # of these three one: the figures of one kind
    published_memory: "Sequence[ExaminedMemory] | None" = None
    published_throughput: "Throughput | None" = None
    claim: "Claim | None" = None
    warnings: Sequence[str] = ()  # one line each
    plan: dict[str, object] | None = None  # the given flags and their values, enough to repeat the command
    # For each analysis, whether its step fits each GPU of the catalogue. Not part of the JSON document.
    on_catalogue: "Sequence[tuple[Fit, ...]]" = ()


class Calibrated(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `calibrate`: the file's fields and name, and what they rest on, steps or a machine."""

    output: str
    document: Mapping[str, Any]
    steps: "CalibratedCluster | None" = None
    machine: "FoundMachine | None" = None
    left_out: tuple[str, ...] = ()  # fields of the file that was started from, as they belong to other rates
