"""A pipeline by formula: what the ranks of each of its places hold, send and compute in one step. Torch-free.

`order` has the rules of the schedules, `messages` what is alive between stages and what is sent, `actions` both
together; `passes` puts fully_shard's schedule around the simulated passes of a stage; `profile` has the result.
"""

from counting.formulas.layouts.pipeline.profile import has_exact_passes, pipeline_by_formula

__all__ = ["has_exact_passes", "pipeline_by_formula"]
