"""The cost of training a model, measured on torch's meta device and checked by independent formulas.

    from counting import Setup, analyze
    print(analyze("deepseek_v3", Setup(sequence_length=4096)).parameters.total)

This package exports the public names. Each is imported from its module on first use, so importing the package is fast
and does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from counting.analysis import Analysis, analyze
    from counting.cost.budget import plan_budget
    from counting.cost.cluster import Cluster, read_cluster
    from counting.cost.comparison import compare
    from counting.cost.design import design_for_budget
    from counting.cost.fit import FittedLaw, TrainedRun, fit_law, read_runs
    from counting.cost.fits import fits_on
    from counting.cost.hardware import find_gpu, load_gpus, read_gpus
    from counting.cost.run import RunPlan, plan_run
    from counting.cost.scaling_laws import find_law
    from counting.measurements.tools import count_flops, measure_memory
    from counting.reconcile import DisagreementError
    from counting.setup import Setup
    from counting.step.time import StepTime
    from torch_models.errors import UserError
    from torch_models.layout import Layout

__all__ = [
    "Analysis",
    "Cluster",
    "DisagreementError",
    "FittedLaw",
    "Layout",
    "RunPlan",
    "Setup",
    "StepTime",
    "TrainedRun",
    "UserError",
    "analyze",
    "compare",
    "count_flops",
    "design_for_budget",
    "find_gpu",
    "find_law",
    "fit_law",
    "fits_on",
    "load_gpus",
    "measure_memory",
    "plan_budget",
    "plan_run",
    "read_cluster",
    "read_gpus",
    "read_runs",
]

_HOMES = {
    "Analysis": "counting.analysis",
    "Cluster": "counting.cost.cluster",
    "DisagreementError": "counting.reconcile",
    "FittedLaw": "counting.cost.fit",
    "Layout": "torch_models.layout",
    "RunPlan": "counting.cost.run",
    "Setup": "counting.setup",
    "StepTime": "counting.step.time",
    "TrainedRun": "counting.cost.fit",
    "UserError": "torch_models.errors",
    "analyze": "counting.analysis",
    "compare": "counting.cost.comparison",
    "count_flops": "counting.measurements.tools",
    "design_for_budget": "counting.cost.design",
    "find_gpu": "counting.cost.hardware",
    "find_law": "counting.cost.scaling_laws",
    "fit_law": "counting.cost.fit",
    "fits_on": "counting.cost.fits",
    "load_gpus": "counting.cost.hardware",
    "measure_memory": "counting.measurements.tools",
    "plan_budget": "counting.cost.budget",
    "plan_run": "counting.cost.run",
    "read_cluster": "counting.cost.cluster",
    "read_gpus": "counting.cost.hardware",
    "read_runs": "counting.cost.fit",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
