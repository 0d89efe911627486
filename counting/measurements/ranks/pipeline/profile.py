"""What the ranks of a pipeline hold, send and compute, one of each place in it."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from msgspec import structs

from counting.counts import StepFlops
from counting.measurements.parameters import buffer_bytes
from counting.measurements.ranks.clipping import clipping_on_rank
from counting.measurements.ranks.context import distinct_context_ranks, of_worst_in_pipeline
from counting.measurements.ranks.fake_world import fake_world
from counting.measurements.ranks.optimizer import RankUpdates, updated_numbers
from counting.measurements.ranks.pipeline.extension import ExtendedOrder, extended_order
from counting.measurements.ranks.pipeline.plans import Key
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
from counting.measurements.ranks.pipeline.schedules import Order, run_order
from counting.measurements.ranks.pipeline.stages import PassRun
from counting.measurements.ranks.pipeline.stand_ins import lowered_once
from counting.measurements.ranks.rank import held_bytes
from counting.measurements.ranks.shares import rank_shares
from counting.ranks.pipeline import (
    PipelineProfile,
    StageProfile,
    micro_batches_of_extension,
    micro_batches_to_run,
)
from counting.ranks.pipeline_memory import pass_traffic
from counting.ranks.profile import RankLayer, RankShare, RankStretch, total_traffic
from counting.ranks.shallow import shallow
from counting.setup import Setup
from counting.step.profile import Stretch
from torch_models.layout import Layout
from torch_models.parallel.clipping import copied_embeddings
from torch_models.parallel.mesh import Meshes, build_meshes
from torch_models.stages import Stage
from torch_models.training.stage import StageModel

TOKEN_ID_BYTES = torch.long.itemsize


class _MeasuredStage(NamedTuple):
    """A stage with modules that stand for its own, and its passes by key."""

    stage: Stage
    module: StageModel
    passes: dict[str, PassRun]


def profiles_of_pipeline(stages: Sequence[Stage], setup: Setup, layout: Layout) -> tuple[PipelineProfile, ...]:
    """Measure one rank of each place in the pipeline, which has these `stages`; both settings must be resolved.

    The process must not have a process group. Call it inside `measuring`. Raises `UserError` for what cannot be divided
    so.
    """
    assert setup.micro_batches is not None, "a resolved setup"
    run = micro_batches_to_run(layout, setup.micro_batches)
    more = micro_batches_of_extension(layout, setup.micro_batches)
    with lowered_once():
        orders = [extended_order(partial(_order, stages, setup, layout, rank), run, more) for rank in range(layout.pp)]
    profiles = [_profiles(stages, setup, layout, orders, run, rank) for rank in distinct_context_ranks(layout)]
    return tuple(of_worst_in_pipeline(tuple(stages), setup, of_place) for of_place in zip(*profiles, strict=True))


def _profiles(
    stages: Sequence[Stage], setup: Setup, layout: Layout, orders: Sequence[ExtendedOrder], run: int, context_rank: int
) -> list[PipelineProfile]:
    """Measure one rank of each place in the pipeline, the first of those at this place in cp."""
    with fake_world(layout.ranks, context_rank * layout.tp):
        measuring_stages = _Stages(setup, layout, build_meshes(layout, OF_MODULES))
        measured = measuring_stages.measure(stages, orders)
        found = [
            measuring_stages.profile(rank, order, run, [measured[number] for number in layout.stages_of_rank(rank)])
            for rank, order in enumerate(orders)
        ]
    return [structs.replace(profile, context_rank=context_rank) for profile in found]


def _order(stages: Sequence[Stage], setup: Setup, layout: Layout, pipeline_rank: int, number: int) -> Order:
    own = [stages[index] for index in layout.stages_of_rank(pipeline_rank)]
    states_of = partial(states_of_stage, setup, layout)
    micro_batch = local_micro_batch(setup, layout)
    shares = partial(shares_embedding, setup, layout)
    return run_order(own, layout, pipeline_rank, micro_batch, number, computed_dtype(setup), states_of, shares)


class _Stages:
    """Measures stages, of equal ones one."""

    def __init__(self, setup: Setup, layout: Layout, meshes: Meshes) -> None:
        self._setup, self._layout, self._meshes = setup, layout, meshes
        self._device = torch.device(OF_MODULES)
        self._updates = RankUpdates(setup, layout, self._device)
        self._clippings: dict[tuple[Stage, ...], RankStretch] = {}

    def measure(self, stages: Sequence[Stage], orders: Sequence[ExtendedOrder]) -> list[_MeasuredStage]:
        """Run the passes of all stages that occur in `orders`; returns the stages in order."""
        needed: dict[Stage, dict[Key, None]] = defaultdict(dict)  # in order, each once
        for order in orders:
            for action in order.actions:
                needed[representative(stages[action.stage])][action.kind, action.found] = None
        of_distinct = {distinct: self._run(distinct, keys) for distinct, keys in needed.items()}
        return [of_distinct[representative(stage)]._replace(stage=stage) for stage in stages]

    def _run(self, stage: Stage, needed: Iterable[Key]) -> _MeasuredStage:
        prepared = prepared_stage(stage, self._setup, self._layout, self._meshes)
        measured_as = {key: prepared.alike(key) for key in needed}
        ran: dict[Key, PassRun] = {}
        for one in prepared.run(set(measured_as.values())):
            ran.setdefault((one.step.kind, one.step.found), one)
        return _MeasuredStage(
            stage, prepared.module, {" ".join(key): ran[measured] for key, measured in measured_as.items()}
        )

    def profile(
        self, pipeline_rank: int, order: ExtendedOrder, run: int, own: Sequence[_MeasuredStage]
    ) -> PipelineProfile:
        """The profile of one rank, which has the stages `own`."""
        setup = self._setup
        assert setup.micro_batches is not None, "a resolved setup"
        of_number = {each.stage.number: each for each in own}
        groups = [group for each in own for group in stage_parameters(each.stage, each.module)]
        flops = StepFlops()
        for passes, times in ((order.passes, 1), (order.further_passes, setup.micro_batches - run)):
            for (number, key), count in passes.items():
                flops += of_number[number].passes[key].flops * (count * times)
        further = [
            (traffic, factor * count)
            for (number, key), count in order.further_passes.items()
            for traffic, factor in pass_traffic(
                shallow(of_number[number].stage.spec), of_number[number].passes[key].measured
            )
        ]
        return PipelineProfile(
            pipeline_rank=pipeline_rank,
            stages=tuple(self._stage_profile(each, order) for each in own),
            inputs=self._inputs(own) * run + sum(_table_bytes(each.module) for each in own),
            actions=order.actions,
            micro_batches_run=run,
            further_inputs=self._inputs(own) if run < setup.micro_batches else 0,
            messages_after=order.messages_after,
            further_after=order.further_after,
            message_traffic=order.traffic,
            further_traffic=total_traffic([(order.further_traffic, 1), *further]),
            gradient_clipping=self._clipping(own, groups) if setup.clip_gradients else None,
            optimizer_step=RankStretch(memory=Stretch(peak=self._updates.peak(groups), net=0)),
            flops=flops,
            shares=self._shares(groups, pipeline_rank),
        )

    def _clipping(self, own: Sequence[_MeasuredStage], groups: ParameterGroups) -> RankStretch:
        """Clipping on a rank with the stages `own`; of ranks with equal stages one is measured."""
        key = tuple(representative(each.stage) for each in own)
        if key not in self._clippings:
            copied = copied_embeddings([each.module for each in own])
            self._clippings[key] = clipping_on_rank(groups, copied, self._setup, self._layout, self._meshes)
        return self._clippings[key]

    def _stage_profile(self, one: _MeasuredStage, order: ExtendedOrder) -> StageProfile:
        number, model = one.stage.number, shallow(one.stage.spec)
        (outside, _), *in_layers = stage_parameters(one.stage, one.module)
        forward = next(each.measured for each in one.passes.values() if each.step.kind == "forward")
        used = {action.key for action in order.actions if action.stage == number}
        layers = zip(model.spec.layers, in_layers, forward.layers, strict=True)
        modules = list(one.module.model.layers)
        return StageProfile(
            stage=number,
            layers=tuple(
                RankLayer(
                    kind=layer.kind,
                    count=count,
                    parameters=updated_numbers(parameters),
                    states=self._updates.states(parameters),
                    held=held_bytes(stretch.memory),
                )
                for layer, (parameters, count), stretch in layers
            ),
            outside_parameters=updated_numbers(outside),
            outside_states=self._updates.states(outside),
            buffers=sum(buffer_bytes(module) * count for module, count in zip(modules, model.counts(), strict=False))
            + sum(map(buffer_bytes, one.module.model.mtp_layers)),
            passes={key: each.measured for key, each in one.passes.items() if key in used},
        )

    def _inputs(self, own: Sequence[_MeasuredStage]) -> int:
        """Bytes of the token ids and labels of one micro-batch that the stages of this rank read."""
        last = [each.module for each in own if each.stage.is_last]
        ids = any(each.stage.is_first for each in own) or any(module.num_mtp_layers for module in last)
        sequences, length = local_micro_batch(self._setup, self._layout)
        return TOKEN_ID_BYTES * sequences * length * (ids + len(last))

    def _shares(self, groups: ParameterGroups, pipeline_rank: int) -> tuple[RankShare, ...]:
        first = pipeline_rank * self._layout.ranks_of_stage
        found = rank_shares(
            [(each, times) for tensors, times in groups for each in tensors], self._layout, self._updates
        )
        return tuple(structs.replace(share, first_rank=first + share.first_rank) for share in found)


def _table_bytes(module: StageModel) -> int:
    assert module.tables is not None
    return sum(table.nbytes for pair in module.tables for table in pair)
