"""Scaling laws: the loss of N parameters on D tokens, and the best N and D for a budget.

`law` (the parametric form), `published` (laws by name), `optimum` (N and D for a compute budget).
"""

from counting.cost.scaling_laws.law import Constant, ScalingLaw, extrapolates, predicted_loss
from counting.cost.scaling_laws.optimum import (
    FLOPS_PER_PARAMETER_AND_TOKEN,
    Optimum,
    affordable_tokens,
    compute_optimum,
    optimal_tokens,
)
from counting.cost.scaling_laws.published import DEFAULT_LAW, LAWS, find_law

__all__ = [
    "DEFAULT_LAW",
    "FLOPS_PER_PARAMETER_AND_TOKEN",
    "LAWS",
    "Constant",
    "Optimum",
    "ScalingLaw",
    "affordable_tokens",
    "compute_optimum",
    "extrapolates",
    "find_law",
    "optimal_tokens",
    "predicted_loss",
]
