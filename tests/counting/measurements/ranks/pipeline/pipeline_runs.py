"""Whole stages under torch's real schedule, with all layers and all micro-batches, for the tests of pipelines."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from counting.measurements.meta_device import measuring
from counting.measurements.ranks.collectives import CollectiveCounter, axes_of
from counting.measurements.ranks.fake_world import fake_world
from counting.measurements.ranks.live_bytes import RankBytes
from counting.measurements.ranks.optimizer import stored_precision
from counting.measurements.ranks.pipeline.stand_ins import pipeline_stand_ins
from counting.measurements.ranks.rank import apply_to
from counting.ranks.pipeline import PassKind, PipelineProfile
from counting.ranks.pipeline_memory import actions_with_passes
from counting.ranks.profile import RankStretch, Traffics
from counting.ranks.shallow import shallow
from counting.setup import Setup
from counting.step.profile import Stretch
from torch_models.builder import build_stage_model
from torch_models.layout import Layout
from torch_models.parallel.clipping import clip_gradients
from torch_models.parallel.mesh import Meshes, build_meshes
from torch_models.parallel.pipeline import Pipeline, build_pipeline, pipeline_rank_of
from torch_models.spec import ModelSpec
from torch_models.stages import Stage, stages_of
from torch_models.training.stage import StageModel

OF_BATCHES: tuple[PassKind, ...] = ("forward", "backward", "input_backward", "weight_backward")
Moment = tuple[PassKind, int, int, int]  # a pass: kind, stage, micro-batch; the most bytes that were alive during it


class WholeRun(NamedTuple):
    """A step of one rank of a pipeline."""

    moments: list[Moment]
    peak: int  # of the whole step
    left: int  # alive after the step, without gradients of parameters
    traffic: Traffics
    clipping: RankStretch | None


def run_whole(spec: ModelSpec, setup: Setup, layout: Layout, rank: int, steps: int = 1) -> WholeRun:
    """The last of `steps` steps on the meta device, as one rank of a group without other processes."""
    with pipeline_stand_ins(), fake_world(layout.ranks, rank), measuring():
        return run_step(spec, setup, layout, torch.device("meta"), steps)


def run_step(spec: ModelSpec, setup: Setup, layout: Layout, device: torch.device, steps: int = 1) -> WholeRun:
    """The last of `steps` steps as the rank that this process is."""
    assert setup.micro_batches is not None
    meshes = build_meshes(layout, device.type)
    stages = stages_of(spec, layout)
    modules = []
    for number in layout.stages_of_rank(pipeline_rank_of(meshes)):
        module = build_stage_model(
            stages[number],
            device=device,
            dtype=getattr(torch, stored_precision(setup, layout).activation_dtype),
            kernels=setup.kernels,
            mtp=bool(setup.mtp),
            loss_chunk=setup.loss_chunk,
        )
        apply_to(module, setup, layout, meshes)
        modules.append(module)
    sequences, length = setup.micro_batch
    micro_batch = (sequences, length // layout.cp)
    pipeline = build_pipeline(modules, layout, meshes, micro_batch=micro_batch, micro_batches=setup.micro_batches)
    shape = setup.micro_batches * sequences, micro_batch[1]
    first, last = (any(getattr(module.stage, end) for module in modules) for end in ("is_first", "is_last"))
    reads_ids = first or any(module.num_mtp_layers for module in modules)
    ids = torch.zeros(shape, dtype=torch.long, device=device) if reads_ids else None
    labels = torch.zeros(shape, dtype=torch.long, device=device) if last else None
    tables = [table for module in modules for pair in module.tables or () for table in pair]
    existing = [each for each in (ids, labels, *tables) if each is not None]
    for module in modules:
        existing += [*module.parameters(), *module.buffers()]
    if not layout.is_sharded and setup.precision_recipe.gradients_apart:
        for module in modules:
            for parameter in module.parameters():
                parameter.register_post_accumulate_grad_hook(_let_go)
    collectives = CollectiveCounter(axes_of(meshes))
    for step in range(steps):
        for module in modules:
            module.zero_grad(set_to_none=True)
        # No variable may refer to the buffers of the step before: some are replaced.
        with RankBytes(
            [*existing, *(_buffers(pipeline) if step else ())], collectives, collectives.of_tensors
        ) as tracker:
            tracker.watch()
            moments: list[Moment] = []
            peaks: list[int] = []
            collectives.phase = "forward"
            collectives.take()
            _follow(pipeline, tracker, moments, peaks)
            pipeline.step(ids, labels)
            peaks.append(tracker.peak)
            gradients = {tracker.serial(p.grad) for m in modules for p in m.parameters() if p.grad is not None}
            left = sum(size for serial, size in tracker.alive().items() if serial not in gradients)
            traffic = collectives.take()
            clipping = _clip(modules, meshes, tracker, collectives) if setup.clip_gradients else None
    return WholeRun(moments, max(peaks), left, traffic, clipping)


def _clip(
    modules: Sequence[StageModel], meshes: Meshes, tracker: RankBytes, collectives: CollectiveCounter
) -> RankStretch:
    """Clip the gradients that are there, as a user does."""
    collectives.phase = "optimizer"
    before = tracker.live
    tracker.watch()
    clip_gradients(modules, meshes, 1.0)
    return RankStretch(memory=Stretch(peak=tracker.peak - before, net=0), traffic=collectives.take())


def _let_go(parameter: Tensor) -> None:
    """Free a gradient when it is complete: it would be added to a buffer in another format."""
    parameter.grad = None


def _buffers(pipeline: Pipeline) -> list[Tensor]:
    stages = getattr(pipeline.schedule, "_stages", None) or [pipeline.schedule._stage]
    return [
        info.buffer
        for stage in stages
        for of_one in (*stage.args_recv_info.values(), *stage.grad_recv_info.values())
        for info in of_one
        if info.buffer is not None
    ]


def _follow(pipeline: Pipeline, tracker: RankBytes, moments: list[Moment], peaks: list[int]) -> None:
    stages = getattr(pipeline.schedule, "_stages", None) or [pipeline.schedule._stage]

    def followed(stage: Any, name: str, kind_of: Callable[[dict[str, Any]], PassKind]) -> None:
        plain = getattr(type(stage), name).__get__(stage)

        def call(micro_batch: int, *args: Any, **kwargs: Any) -> Any:
            peaks.append(tracker.peak)
            tracker.watch()
            try:
                return plain(micro_batch, *args, **kwargs)
            finally:
                moments.append((kind_of(kwargs), stage.stage_index, micro_batch, tracker.peak))

        setattr(stage, name, call)

    def reduces(stage: Any) -> None:
        plain = stage.perform_reduce_grad

        def call(factor: int) -> None:
            peaks.append(tracker.peak)
            tracker.watch()
            plain(factor)
            moments.append(("reduction", stage.stage_index, -1, tracker.peak))

        stage.perform_reduce_grad = call

    for stage in stages:
        if isinstance(stage.submod, FSDPModule):
            reduces(stage)
        followed(stage, "forward_one_chunk", lambda kwargs: "forward")
        followed(
            stage,
            "backward_one_chunk",
            lambda kwargs: "backward" if kwargs.get("full_backward", True) else "input_backward",
        )
        followed(stage, "backward_weight_one_chunk", lambda kwargs: "weight_backward")


def composed_moments(profile: PipelineProfile, stages: Sequence[Stage], further: int = 0) -> tuple[list[Moment], int]:
    """The same moments from the profile, of the micro-batches that run in it; and the most bytes of all actions.

    `further` are the micro-batches beyond those.
    """
    weights = sum(
        stage.outside_states.weights + sum(layer.states.weights * layer.count for layer in stage.layers) + stage.buffers
        for stage in profile.stages
    )
    inputs = profile.inputs + further * profile.further_inputs
    kept, most, moments = 0, 0, list[Moment]()
    for action, stage, one_pass in actions_with_passes(profile):
        now = weights + inputs + kept + action.messages + further * action.further
        peak = now
        for stretch in _in_order(shallow(stages[stage.stage].spec).runs, one_pass):
            peak = max(peak, now + stretch.memory.peak)
            now += stretch.memory.net
            kept += stretch.memory.net
        most = max(most, peak)
        if action.kind in (*OF_BATCHES, "reduction"):
            number = -1 if action.micro_batch is None else action.micro_batch
            moments.append((action.kind, action.stage, number, peak))
    return moments, most


def _in_order(runs: Sequence[tuple[int, int]], one_pass: Any) -> list[RankStretch]:
    layers = [one_pass.layers[index] for index, count in runs for _ in range(count)]
    return [one_pass.before, *(layers if one_pass.ascending else layers[::-1]), one_pass.after]
