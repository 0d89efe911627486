"""How long a step takes on clusters: its measured work goes in, and no other witness."""

from collections.abc import Sequence
from functools import lru_cache

from counting.cost.cluster import Cluster
from counting.setup import Setup
from counting.work import StepWork
from torch_models.layout import Layout
from torch_models.spec import ModelSpec


@lru_cache(maxsize=4)
def work_of_step(spec: ModelSpec, setup: Setup, layout: Layout | None = None) -> StepWork:
    """The measured work of a step of `spec`; `setup` and `layout` are resolved, `layout` None is one device.

    Measured once, however many clusters it is laid out on.
    """
    if layout is None:
        from counting.measurements.work.device import work_of_device

        return work_of_device(spec, setup)
    from counting.measurements.ranks import measure_work

    return measure_work(spec, setup, layout)


def trace_of_step(spec: ModelSpec, setup: Setup, layout: Layout | None, cluster: Cluster) -> bytes:
    """A chrome trace of one step on `cluster`, as a file."""
    from counting.cost.step_time import chrome_trace

    return chrome_trace(work_of_step(spec, setup, layout), setup, layout, cluster)


def step_times(clusters: Sequence[Cluster]) -> None:
    """Placeholder of the screen's owner: StepTime of each cluster for an analysis."""
    raise NotImplementedError
