"""Closed forms of one rank of a layout: what it holds, sends and computes, and fully_shard's schedule. Torch-free.

`ranks_by_formula` returns the `RankProfile` that `counting.measurements.ranks` measures. `groups`, `sharding` and
`shards` say what a rank stores, `schedule` when fully_shard gathers, frees and reduces it, `passes` put the compute of
the simulation between; `traffic`, `flops` and `replicated` say what ranks of tensor and expert parallelism share.
"""

from counting.formulas.layouts.flops import replicated_forward_flops
from counting.formulas.layouts.pipeline import has_exact_passes, pipeline_by_formula
from counting.formulas.layouts.profile import ranks_by_formula
from counting.formulas.layouts.replicated import replicated_parameters
from counting.formulas.layouts.search import RankCost, rank_cost

__all__ = [
    "RankCost",
    "has_exact_passes",
    "pipeline_by_formula",
    "rank_cost",
    "ranks_by_formula",
    "replicated_forward_flops",
    "replicated_parameters",
]
