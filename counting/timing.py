"""How long a step takes on clusters: its measured work goes in, and no other witness."""

from collections.abc import Sequence
from functools import lru_cache

import msgspec

from counting.cost.cluster import Cluster
from counting.counts import model_flops_per_token
from counting.setup import Setup
from counting.step.time import StepTime
from counting.work import Norms, StepWork
from torch_models.errors import ArgumentError
from torch_models.layout import Layout
from torch_models.recomputed_layers import with_recompute
from torch_models.spec import ModelSpec


@lru_cache(maxsize=4)
def work_of_step(spec: ModelSpec, setup: Setup, layout: Layout | None = None, norms: Norms = "fused") -> StepWork:
    """The measured work of a step of `spec`; `setup` and `layout` are resolved, `layout` None is one device.

    Measured once, however many clusters it is laid out on. `norms` are those of the cluster's software.
    """
    if layout is None:
        from counting.measurements.work.device import work_of_device

        return work_of_device(spec, setup, norms)
    from counting.measurements.ranks import measure_work

    return measure_work(spec, setup, layout, norms)


def step_times(
    spec: ModelSpec,
    setup: Setup,
    layout: Layout | None,
    clusters: Sequence[Cluster],
    *,
    forward_flops: int,
    hardware_flops: int,
) -> tuple[StepTime, ...]:
    """How long a step takes on each cluster; empty by Megatron-LM's rules, by which no step is run.

    `spec`, `setup` and `layout` are those of the measurement. `forward_flops` are those of the undivided model over one
    micro-batch, with multi-token prediction if it is trained; `hardware_flops` those of all ranks in a step.
    """
    if layout is not None and layout.framework != "torch":
        return ()
    from counting.cost.step_time import step_time

    measured = _as_measured(setup)
    per_token = model_flops_per_token(forward_flops, setup.tokens)
    return tuple(
        step_time(
            work_of_step(spec, measured, layout, cluster.norms),
            measured,
            layout,
            cluster,
            model_flops_per_token=per_token,
            hardware_flops=hardware_flops,
        )
        for cluster in clusters
    )


def trace_of_step(spec: ModelSpec, setup: Setup, layout: Layout | None, cluster: Cluster) -> bytes:
    """A chrome trace of one step on `cluster`, as a file; `setup` and `layout` are those of its analysis."""
    if layout is not None and layout.framework != "torch":
        raise ArgumentError("framework", layout.framework, "is by formula, and not run, so a step cannot be traced")
    from counting.cost.step_time import chrome_trace

    measured = _as_measured(setup)
    return chrome_trace(
        work_of_step(with_recompute(spec, setup.recompute), measured, layout, cluster.norms),
        measured,
        layout,
        cluster,
    )


def _as_measured(setup: Setup) -> Setup:
    """`setup` without what it says of itself, so that equal steps are measured once."""
    return msgspec.structs.replace(setup, sequence_length_source="given", measured_dtype=None)


def checked_clusters(cluster: object, layout: Layout | None) -> tuple[tuple[Cluster, ...], Layout | None]:
    """One cluster or several as a tuple, and `layout`; whichever of them says how large a node is, the others follow.

    Raises `ArgumentError` for what is no cluster.
    """
    clusters = (cluster,) if isinstance(cluster, Cluster) else cluster
    if not isinstance(clusters, tuple | list) or not clusters or not all(isinstance(one, Cluster) for one in clusters):
        raise ArgumentError("cluster", cluster, "must be a Cluster, or several of them")
    if layout is not None and layout.gpus_per_node is None:
        return tuple(clusters), msgspec.structs.replace(layout, gpus_per_node=clusters[0].node_size)
    if layout is None:
        return tuple(clusters), None
    node = layout.gpus_per_node
    return tuple(
        one if one.gpus_per_node else msgspec.structs.replace(one, gpus_per_node=node) for one in clusters
    ), layout
