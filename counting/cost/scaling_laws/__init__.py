"""Scaling laws: the loss of N parameters on D tokens, and the best N and D for a budget.

`law` (the parametric form), `law_file` (a law in a file), `published` (laws by name), `optimum` (N and D for a compute
budget), `intervals` (from the draws of a bootstrap), `wrong_choice` (what it costs to follow another law than the one
that holds), `allocation` (laws that say only N or D), `shapes` (what converts them), `side_by_side`, `curve`.
"""

from counting.cost.scaling_laws.intervals import Interval, OptimumIntervals, loss_interval, optimum_intervals
from counting.cost.scaling_laws.law import Constant, ScalingLaw, extrapolates, orders_beyond, predicted_loss
from counting.cost.scaling_laws.law_file import read_law
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
    "Interval",
    "Optimum",
    "OptimumIntervals",
    "ScalingLaw",
    "affordable_tokens",
    "compute_optimum",
    "extrapolates",
    "find_law",
    "loss_interval",
    "optimal_tokens",
    "optimum_intervals",
    "orders_beyond",
    "predicted_loss",
    "read_law",
]
