"""One step as a trace that Perfetto and chrome://tracing open: rows of compute and of links for each rank of pp."""

from counting.cost.cluster import Cluster
from counting.setup import Setup
from counting.work import StepWork
from torch_models.layout import Layout


def chrome_trace(work: StepWork, setup: Setup, layout: Layout | None, cluster: Cluster) -> bytes:
    """The JSON document of the trace; the arguments are those of `step_time`."""
    raise NotImplementedError
