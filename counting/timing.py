"""How long a step takes on clusters: its measured work goes in, and no other witness.

All functions take the model as it was read, or with layers that say what is recomputed of each: `work_of_step` sees to
it that they do.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from counting.cost.cluster import Cluster
from counting.counts import model_flops_per_token
from counting.setup import Setup
from counting.step.time import StepTime
from counting.work import OWN_STYLE, LayerStyle, RankWork, StageWork, StepWork, StretchWork
from torch_models.errors import ArgumentError
from torch_models.layout import Layout
from torch_models.recomputed_layers import with_recompute
from torch_models.spec import ModelSpec

if TYPE_CHECKING:
    from counting.cost.step_time import ChromeTrace


def work_of_step(
    spec: ModelSpec, setup: Setup, layout: Layout | None = None, style: LayerStyle = OWN_STYLE
) -> StepWork:
    """The measured work of a step of `spec`; `setup` and `layout` are resolved, `layout` None is one device.

    Measured once, however many clusters it is laid out on. `style` is that of the cluster's software.
    """
    # What a setup says of itself is left out, so that equal steps are measured once.
    measured = msgspec.structs.replace(setup, sequence_length_source="given", measured_dtype=None)
    return _measured_work(with_recompute(spec, setup.recompute), measured, layout, style)


@lru_cache(maxsize=4)
def _measured_work(spec: ModelSpec, setup: Setup, layout: Layout | None, style: LayerStyle) -> StepWork:
    if layout is None:
        from counting.measurements.work.device import work_of_device

        return work_of_device(spec, setup, style)
    from counting.measurements.ranks import measure_work

    return measure_work(spec, setup, layout, style)


def step_times(
    spec: ModelSpec,
    setup: Setup,
    layout: Layout | None,
    clusters: Sequence[Cluster],
    *,
    forward_flops: int,
    forward_only: int,
) -> tuple[StepTime, ...]:
    """How long a step takes on each cluster; empty by Megatron-LM's rules, by which no step is run.

    `setup` and `layout` are resolved. `forward_flops` are those of the undivided model over one micro-batch, with
    multi-token prediction if it is trained; `forward_only` are those of them that backward does not pass.
    """
    if layout is not None and layout.framework != "torch":
        return ()
    from counting.cost.step_time import step_time

    per_token = model_flops_per_token(forward_flops, setup.tokens, forward_only)
    works = [work_of_step(spec, setup, layout, cluster.style) for cluster in clusters]
    return tuple(
        step_time(
            work,
            setup,
            layout,
            cluster,
            model_flops_per_token=per_token,
            hardware_flops=executed_flops(work, layout),
        )
        for work, cluster in zip(works, clusters, strict=True)
    )


def timed_step(
    spec: ModelSpec, setup: Setup, layout: Layout, cluster: Cluster, *, forward_flops: int, forward_only: int
) -> tuple[Setup, Layout, StepTime]:
    """How long a step takes, without an analysis of what ranks hold, with setup and layout resolved.

    `forward_flops` are those of the undivided model over one micro-batch, with multi-token prediction if it is trained;
    `forward_only` are those of them that backward does not pass. Raises `UserError` where a setting is refused.
    """
    from counting.layout import resolve_step

    (cluster,), of_cluster = checked_clusters(cluster, layout)
    assert of_cluster is not None
    setup, layout = resolve_step(of_cluster, spec, setup)
    if layout.framework != "torch":
        raise ArgumentError("framework", layout.framework, "is by formula, and not run, so its step has no time")
    (time,) = step_times(spec, setup, layout, (cluster,), forward_flops=forward_flops, forward_only=forward_only)
    return setup, layout, time


def executed_flops(work: StepWork, layout: Layout | None) -> int:
    """FLOPs that all ranks execute in the passes of a step, by the full square of attention: those of HFU.

    Kernels skip the half of the square that causality hides, and it is counted. Ring attention skips more: of the c
    squares of a rank's positions with those of each rank of cp it calls kernels for (c + 1) / 2
    (`_templated_ring_attention` in torch/distributed/tensor/experimental/_context_parallel/_attention.py). All c are
    counted, so that equal work has equal FLOPs under every layout.

    Micro-batches that the order leaves out do what the one in the middle of it does (`RankWork`).
    """
    cp, ranks = (1, 1) if layout is None else (layout.cp, layout.ranks_of_stage)
    return ranks * sum(_flops_of_rank(rank, work.micro_batches, cp) for rank in work.ranks)


def _flops_of_rank(rank: RankWork, micro_batches: int, cp: int) -> int:
    of_pass = {(stage.stage, key): _flops_of_pass(stage, key, cp) for stage in rank.stages for key in stage.passes}
    total = sum(of_pass[one.stage, one.key] for one in rank.order)
    ordered = len({one.micro_batch for one in rank.order if one.micro_batch is not None})
    middle = sum(of_pass[one.stage, one.key] for one in rank.order if one.micro_batch == ordered // 2)
    return total + middle * (micro_batches - ordered)


def _flops_of_pass(stage: StageWork, key: str, cp: int) -> int:
    one = stage.passes[key]
    layers = sum(number * _flops(one.layers[layer], cp) for layer, number in stage.runs) if one.layers else 0
    return _flops(one.before, cp) + layers + _flops(one.after, cp)


def _flops(stretch: StretchWork, cp: int) -> int:
    attention = sum(op.calls * op.flops for op in stretch.ops if op.kind == "attention")
    others = sum(op.calls * op.flops for op in stretch.ops if op.kind != "attention")
    return others + attention * 2 * cp // (cp + 1)


def trace_of_step(spec: ModelSpec, setup: Setup, layout: Layout | None, cluster: Cluster) -> "ChromeTrace":
    """A chrome trace of one step on `cluster`; `setup` and `layout` are those of its analysis."""
    if layout is not None and layout.framework != "torch":
        raise ArgumentError("framework", layout.framework, "is by formula, and not run, so a step cannot be traced")
    from counting.cost.step_time import chrome_trace

    return chrome_trace(work_of_step(spec, setup, layout, cluster.style), setup, layout, cluster)


def checked_clusters(cluster: object, layout: Layout | None) -> tuple[tuple[Cluster, ...], Layout | None]:
    """One cluster, several or none (None) as a tuple, and `layout`.

    Whichever of them says how large a node is, the others follow. Raises `ArgumentError` for what is no cluster.
    """
    if cluster is None:
        return (), layout
    clusters = (cluster,) if isinstance(cluster, Cluster) else cluster
    if not isinstance(clusters, tuple | list) or not clusters or not all(isinstance(one, Cluster) for one in clusters):
        raise ArgumentError("cluster", cluster, "must be a Cluster, or several of them")
    if layout is None:
        return tuple(clusters), None
    node = layout.gpus_per_node
    if node is None:
        return tuple(clusters), msgspec.structs.replace(layout, gpus_per_node=clusters[0].node_size)
    return tuple(
        one if one.gpus_per_node else msgspec.structs.replace(one, gpus_per_node=node) for one in clusters
    ), layout


def check_clusters(clusters: Sequence[Cluster], setup: Setup, layout: Layout | None) -> None:
    """Raise `UserError` for what is not known of a cluster and needed, before anything is measured."""
    if not clusters or (layout is not None and layout.framework != "torch"):
        return
    from counting.cost.step_time import check_cluster

    for cluster in clusters:
        check_cluster(cluster, setup, layout)
