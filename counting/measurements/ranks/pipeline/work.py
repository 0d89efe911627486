"""The work of the ranks of a pipeline: the passes of each distinct stage, and the order of those of a whole step."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch

from counting.measurements.ranks.fake_world import fake_world
from counting.measurements.ranks.optimizer import adds_to_buffers
from counting.measurements.ranks.pipeline.plans import plan_of_kinds
from counting.measurements.ranks.pipeline.prepared import (
    OF_MODULES,
    ParameterGroups,
    computed_dtype,
    local_micro_batch,
    prepared_stage,
    representative,
    shares_embedding,
    stage_parameters,
    states_of_stage,
)
from counting.measurements.ranks.pipeline.stages import PassRun
from counting.measurements.ranks.pipeline.step_orders import StepOrder, step_orders
from counting.measurements.work.assembly import works_of
from counting.measurements.work.rank import update_of_rank
from counting.measurements.work.recorder import Recorder
from counting.measurements.work.records import RawStretch
from counting.measurements.work.update import record_sums
from counting.ranks.pipeline import PassKind, micro_batches_to_order
from counting.ranks.profile import Traffics
from counting.ranks.shallow import shallow
from counting.setup import Execution, Setup
from counting.work import PassWork, RankWork, StageWork, StepWork, StretchWork
from torch_models.layout import Layout
from torch_models.parallel.clipping import copied_embeddings
from torch_models.parallel.mesh import Meshes, build_meshes
from torch_models.parallel.pipeline import messages_of
from torch_models.spec import LayerSpec
from torch_models.stages import Stage
from torch_models.training.stage import StageModel

_Weights = dict[LayerSpec, StretchWork]  # of a `weight_backward`


class _RecordedStage(NamedTuple):
    passes: dict[str, PassWork]
    module: StageModel
    parameters: ParameterGroups


def work_of_pipeline(stages: Sequence[Stage], setup: Setup, layout: Layout) -> StepWork:
    """What one rank of each place in the pipeline does, which has these `stages`; both settings must be resolved.

    Of the ranks of cp, which compute and send the same, the first is measured. The process must not have a process
    group. Call it inside `measuring`. Raises `UserError` for what cannot be divided so.
    """
    assert setup.micro_batches is not None, "a resolved setup"
    orders = step_orders(
        stages,
        layout,
        micro_batches_to_order(layout, setup.micro_batches),
        partial(states_of_stage, setup, layout),
        partial(shares_embedding, setup, layout),
    )
    needed: dict[Stage, dict[str, None]] = defaultdict(dict)  # in order, each once
    for order in orders:
        for one in order:
            needed[representative(stages[one.stage])][one.key] = None
    with fake_world(layout.ranks):
        meshes = build_meshes(layout, OF_MODULES)
        weights: _Weights = {}
        recorded = {stage: _recorded(stage, keys, setup, layout, meshes, weights) for stage, keys in needed.items()}
        ranks: list[RankWork] = []
        updates: dict[tuple[Stage, ...], StretchWork] = {}
        for rank, order in enumerate(orders):
            own = [stages[index] for index in layout.stages_of_rank(rank)]
            measured = tuple(map(representative, own))
            if measured not in updates:
                groups = [group for stage in measured for group in recorded[stage].parameters]
                copied = copied_embeddings([recorded[stage].module for stage in measured])
                device = torch.device(OF_MODULES)
                updates[measured] = update_of_rank(groups, copied, setup, layout, meshes, device)
            passes = [recorded[stage].passes for stage in measured]
            ranks.append(
                RankWork(
                    pipeline_rank=rank,
                    stages=_stages(own, passes, order, setup, layout),
                    order=order,
                    optimizer=updates[measured],
                )
            )
    return StepWork(ranks=tuple(ranks), micro_batches=setup.micro_batches)


def _stages(
    own: Sequence[Stage], passes: Sequence[dict[str, PassWork]], order: StepOrder, setup: Setup, layout: Layout
) -> tuple[StageWork, ...]:
    """The stages `own` of a rank, with those of their passes that are in its order."""
    used = {(one.stage, one.key) for one in order}
    numbers = {stage.number for stage in own}
    return tuple(
        StageWork(
            stage=stage.number,
            runs=shallow(stage.spec).runs,
            passes={key: work for key, work in of_stage.items() if (stage.number, key) in used},
            message_bytes=_message_bytes(stage, numbers, setup, layout),
        )
        for stage, of_stage in zip(own, passes, strict=True)
    )


def _message_bytes(stage: Stage, own: set[int], setup: Setup, layout: Layout) -> tuple[int, int]:
    """Bytes of the output and of the gradient of the input; 0 at the ends, and to a stage of the same rank."""
    given, returned = messages_of(stage, layout, local_micro_batch(setup, layout), computed_dtype(setup))
    return (
        0 if stage.is_last or stage.number + 1 in own else returned.nbytes,
        0 if stage.is_first or stage.number - 1 in own else given.nbytes,
    )


def _recorded(
    stage: Stage, keys: Collection[str], setup: Setup, layout: Layout, meshes: Meshes, weights: _Weights
) -> _RecordedStage:
    """The passes of a stage with these keys; layers whose `weights` are not there yet are added to them.

    What a pass finds changes neither its FLOPs nor what it sends, only what it adds its gradients to. So of each kind
    few are run, and the last of them, which finds gradients, stands for those that are not. The gradients of a layer's
    parameters are computed in all stages alike, but in the first, whose input needs none.
    """
    recorder = Recorder()
    prepared = prepared_stage(stage, setup, layout, meshes, recorder)
    kinds: dict[str, PassKind] = {key: key.split()[0] for key in keys}  # type: ignore[misc]
    layers, to_run = shallow(stage.spec).spec.layers, set(kinds.values())
    works, standing = dict[str, PassWork](), dict[PassKind, PassWork]()
    if {"backward", "weight_backward"} <= to_run and not (stage.is_first or stage.is_last):
        found = [weights[layer] for layer in layers if layer in weights]
        if len(found) == len(layers):  # nothing else of such a stage has parameters
            to_run.remove("weight_backward")
            standing["weight_backward"] = PassWork(layers=tuple(found))
    hooks = record_sums(prepared.module, recorder) if adds_to_buffers(setup, layout) else []
    runs = prepared.runs.run(plan_of_kinds(states_of_stage(setup, layout, stage), to_run))
    for hook in hooks:
        hook.remove()
    for one, work in zip(runs, _pass_works(runs, recorder.take(), setup.execution), strict=True):
        works.setdefault(f"{one.step.kind} {one.step.found}", work)
        standing[one.step.kind] = work
        if one.step.kind == "weight_backward" and not stage.is_first:
            weights |= zip(layers, work.layers, strict=True)
    return _RecordedStage(
        {key: works.get(key, standing[kind]) for key, kind in kinds.items()},
        prepared.module,
        stage_parameters(stage, prepared.module),
    )


def _pass_works(runs: Sequence[PassRun], stretches: Sequence[RawStretch], execution: Execution) -> Iterator[PassWork]:
    """The work of each of `runs`; of the stretches of a pass the first is what precedes it."""
    traffics: list[Traffics] = []
    layers: list[int | None] = []
    recorded = iter(stretches)
    of_passes: list[RawStretch] = []
    for one in runs:
        measured = one.measured
        preceding = next(recorded)
        assert not preceding.ops, "nothing runs between passes"
        numbers = [*range(len(measured.layers))] if measured.ascending else [*reversed(range(len(measured.layers)))]
        found = [measured.before, *(measured.layers[number] for number in numbers), measured.after]
        traffics += [stretch.traffic for stretch in found]
        layers += [None, *numbers, None]
        of_passes += [next(recorded) for _ in found]
    works = iter(works_of(of_passes, traffics, layers, execution))
    for one in runs:
        number, ascending = len(one.measured.layers), one.measured.ascending
        begin, *middle, end = [next(works) for _ in range(number + 2)]
        yield PassWork(
            before=begin, layers=tuple(middle if ascending else reversed(middle)), after=end, ascending=ascending
        )
