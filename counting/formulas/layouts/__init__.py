"""Closed forms of one rank of a layout: what it holds, sends and computes, and fully_shard's schedule. Torch-free.

`ranks_by_formula` returns the `RankProfile` that `counting.measurements.ranks` measures.
"""

from counting.formulas.layouts.profile import ranks_by_formula

__all__ = ["ranks_by_formula"]
