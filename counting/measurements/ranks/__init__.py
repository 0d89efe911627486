"""One rank of a layout, measured: torch's own parallelism on the meta device, in a group without other processes.

`measure_ranks` runs a training step of the shallow model as rank 0, and `measure_pipeline` one as a rank of each place
in a pipeline. `fake_world` makes the process group, `stand_ins`
has all that torch's interfaces lack for it; `live_bytes`, `collectives` and `categories` follow what the step does.
"""

from counting.measurements.ranks.process import log_of_rank, measure_pipeline, measure_ranks, measure_work

__all__ = ["log_of_rank", "measure_pipeline", "measure_ranks", "measure_work"]
