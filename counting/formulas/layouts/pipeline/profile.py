"""What the ranks of each place of a pipeline hold, send and compute in one step: the profiles that are measured too."""

from collections import Counter
from collections.abc import Sequence

from msgspec import structs

from counting.counts import Counts, StepFlops
from counting.formulas.flops import fused_core_backward, head_flops
from counting.formulas.layouts.clipping import clipping_by_formula
from counting.formulas.layouts.flops import local_model, rank_flops
from counting.formulas.layouts.formats import formats, stored
from counting.formulas.layouts.groups import frozen_shapes, layer_shapes
from counting.formulas.layouts.pipeline.actions import actions_of, messages_after
from counting.formulas.layouts.pipeline.messages import Messages
from counting.formulas.layouts.pipeline.passes import (
    OF_PREDICTION,
    PassesByKey,
    outside_of_stage,
    passes_of_stage,
)
from counting.formulas.layouts.search import distinct_context_ranks
from counting.formulas.layouts.sharding import data_sharding, expert_sharding, numbers
from counting.formulas.layouts.shards import Tensor, Update, counted_tensors, rank_shares, updated_numbers
from counting.formulas.layouts.traffic import Sending, counted
from counting.formulas.local.held import local_layer_held
from counting.formulas.local.shapes import division_of, local_layer, local_setup
from counting.formulas.states import TOKEN_ID_BYTES, buffer_bytes, table_bytes
from counting.formulas.tensors import gradients_apart
from counting.ranks.pipeline import (
    NOTHING_RUNS,
    PipelineAction,
    PipelineProfile,
    StagePass,
    StageProfile,
    micro_batches_of_extension,
    micro_batches_to_run,
)
from counting.ranks.pipeline_memory import pass_traffic, pipeline_memory
from counting.ranks.profile import RankLayer, RankShare, RankStretch, Traffics, total_traffic
from counting.ranks.shallow import shallow
from counting.setup import Setup
from counting.step.profile import Stretch
from torch_models.layout import HALVED, Layout
from torch_models.spec import (
    GroupedQueryAttentionSpec,
    LayerRun,
    LayerSpec,
    MixtureOfExpertsSpec,
    ModelSpec,
    MultiHeadLatentAttentionSpec,
)
from torch_models.stages import Stage, stages_of

Groups = list[tuple[list[Tensor], int]]


def pipeline_by_formula(spec: ModelSpec, setup: Setup, layout: Layout) -> tuple[PipelineProfile, ...]:
    """Return the profile of each place of the pipeline of `layout`, with pp > 1; both settings are resolved.

    With cp it is that of the place in cp with the largest peak, the lowest of several.
    """
    stages = stages_of(spec, layout)

    def peak(profile: PipelineProfile) -> int:
        return max(pipeline_memory(stages, setup, profile, share, "").peak_bytes for share in profile.shares)

    def of_place(pipeline_rank: int) -> PipelineProfile:
        found = [_profile(stages, setup, layout, pipeline_rank, place) for place in distinct_context_ranks(layout)]
        worst = found[0] if len(found) == 1 else max(found, key=peak)
        if has_exact_passes(spec, setup, layout):
            return worst
        without = tuple(structs.replace(stage, passes=None) for stage in worst.stages)
        bound = peak(worst) + sum(_of_predictions(stages[each.stage], setup, layout) for each in worst.stages)
        return structs.replace(worst, stages=without, peak_bound_bytes=bound)

    return tuple(map(of_place, range(layout.pp)))


def has_exact_passes(spec: ModelSpec, setup: Setup, layout: Layout) -> bool:
    """Whether the passes by formula are those that are measured; else the profile has a bound of the peak alone.

    They are but for the second half of backward in four cases, where the order in which the gradients of parameters
    are computed decides what is alive: norms after a block, whose gradients are those of the residual stream; experts
    in a checkpoint, which runs again for each parameter; experts with latent attention, of few tokens; and multi-token
    prediction, which uses embedding and head again, and whose hooks of fully_shard run in that half too.
    """
    if layout.pp == 1 or layout.schedule not in HALVED:
        return True
    if setup.mtp:
        return False
    for layer, _ in spec.layer_groups():
        experts = isinstance(layer.feed_forward, MixtureOfExpertsSpec)
        latents = isinstance(layer.attention, MultiHeadLatentAttentionSpec)
        again = layer.recompute_in(setup.recompute) == "full"
        if layer.norm_placement != "before" or (experts and (again or latents)):
            return False
    return True


def _of_predictions(stage: Stage, setup: Setup, layout: Layout) -> int:
    """Bytes that prediction layers have beside the simulated ones when their gradients are computed apart, at most.

    Their gradients as they are computed; with full recomputation also in the format of the reduction, since the hooks
    of fully_shard run meanwhile, and what the checkpoint restores once more. Experts that ep divides are a group of
    their own, whose gradients are reduced meanwhile without it too: what a reduce-scatter reads and writes.
    """
    if not (stage.is_last and setup.mtp):
        return 0
    local, recipe = local_model(stage.spec, layout.tp, mtp=setup.mtp), setup.precision_recipe
    computed, reduced = recipe.activation_bytes, formats(setup).reduced
    found = 0
    for layer, whole in zip(local.mtp_layers, stage.spec.mtp_layers, strict=True):
        shapes, stacks, _ = layer_shapes(layer, layout.ep, predicts=True)
        of_layer = sum(map(numbers, (*shapes, *stacks)))
        found += of_layer * computed
        if layer.recompute_in(setup.recompute) == "full":
            once = structs.replace(setup, recompute="none")
            unmarked = structs.replace(whole, recompute=None)
            found += of_layer * reduced + local_layer_held(unmarked, once, layout)
        elif layout.ep > 1:
            of_experts = sum(map(numbers, stacks)) * reduced
            found += of_experts + of_experts // layout.expert_fsdp
    return found


def _profile(
    stages: Sequence[Stage], setup: Setup, layout: Layout, pipeline_rank: int, context_rank: int
) -> PipelineProfile:
    assert setup.micro_batches is not None, "a resolved setup"
    local = local_setup(setup, layout.cp)
    run = micro_batches_to_run(layout, setup.micro_batches)
    own = [stages[number] for number in layout.stages_of_rank(pipeline_rank)]
    messages = Messages(layout, pipeline_rank, _message_bytes(stages[0].spec, local, layout))
    update = Update(stored(setup, sharded=layout.is_sharded), setup.optimizer_recipe)
    groups = [group for stage in own for group in _groups(stage, setup, layout)]
    passes = {
        stage.number: passes_of_stage(stage, setup, layout, context_rank) | _exchange(stage, setup, layout, update)
        for stage in own
    }
    more = micro_batches_of_extension(layout, setup.micro_batches)
    actions = actions_of(messages, setup, run, more)
    longer = actions_of(messages, setup, run + more, 0) if more else actions
    after, further_after = messages_after(messages, run, more)
    used = {stage.number: {action.key for action in actions if action.stage == stage.number} for stage in own}
    return PipelineProfile(
        pipeline_rank=pipeline_rank,
        stages=tuple(
            _stage_profile(stage, setup, layout, update, passes[stage.number], used[stage.number], context_rank)
            for stage in own
        ),
        inputs=_inputs(own, local, run) + sum(table_bytes(stage.spec, local) for stage in own),
        actions=actions,
        micro_batches_run=run,
        further_inputs=_inputs(own, local, 1) if more else 0,
        messages_after=after,
        further_after=further_after,
        message_traffic=messages.traffic(run),
        further_traffic=_further_traffic(own, messages, (actions, longer), more, passes) if more else {},
        gradient_clipping=_clipping(own, groups, setup, layout, update) if setup.clip_gradients else None,
        optimizer_step=RankStretch(memory=Stretch(peak=update.temporary_bytes(groups), net=0)),
        flops=_flops(own, setup, layout, actions),
        shares=_shares(groups, layout, update, pipeline_rank),
        context_rank=context_rank,
    )


def _clipping(own: Sequence[Stage], groups: Groups, setup: Setup, layout: Layout, update: Update) -> RankStretch:
    """Clipping; of an embedding that the last stage has again, the first one counts the norm."""
    again = bool(setup.mtp) and any(stage.is_last for stage in own)
    tensors = counted_tensors(groups)
    return clipping_by_formula(tensors._replace(others=tensors.others - again), update.formats.gradient, layout)


def _exchange(stage: Stage, setup: Setup, layout: Layout, update: Update) -> PassesByKey:
    """The sum of the gradients of both embeddings: each rank sends its own and adds what it receives."""
    local = local_model(stage.spec, layout.tp, mtp=setup.mtp)
    size = data_sharding(layout).updated((local.vocab_size, local.hidden_size)) * update.formats.gradient
    traffic = counted("backward", [Sending("send", "pp", size, 0), Sending("receive", "pp", 0, size)])
    nothing = (NOTHING_RUNS,) * shallow(stage.spec).spec.num_layers
    before = RankStretch(memory=Stretch(peak=size, net=0), traffic=traffic)
    return {"exchange nothing": StagePass(before=before, layers=nothing, after=NOTHING_RUNS, ascending=True)}


def _message_bytes(spec: ModelSpec, setup: Setup, layout: Layout) -> int:
    """Bytes of the residual stream of one micro-batch on a rank."""
    tokens = division_of(layout).stream_tokens(setup.micro_batch)
    return tokens * spec.hidden_size * setup.precision_recipe.activation_bytes


def _inputs(own: Sequence[Stage], setup: Setup, micro_batches: int) -> int:
    """Bytes of token ids in the first stage, and of labels in the last; it needs token ids too if it predicts on.

    `setup` is that of the rank's positions.
    """
    is_last = any(stage.is_last for stage in own)
    has_ids = any(stage.is_first for stage in own) or (is_last and bool(setup.mtp))
    return TOKEN_ID_BYTES * setup.tokens * micro_batches * (has_ids + is_last)


# --- States --------------------------------------------------------------------------------------------------------


def _groups(stage: Stage, setup: Setup, layout: Layout) -> Groups:
    """The tensors outside the layers of a stage, then those of each layer of the shallow stage with its number."""
    model = shallow(stage.spec)
    local = local_model(model.spec, layout.tp, mtp=setup.mtp)
    data = data_sharding(layout)
    outside = [Tensor(shape, data) for shapes in outside_of_stage(stage, setup, layout).values() for shape in shapes]
    for layer in local.mtp_layers if setup.mtp else ():
        outside += _tensors(layer, layout, predicts=True)
    of_layers = [_tensors(layer, layout) for layer in local.layers]
    return [(outside, 1), *zip(of_layers, model.counts(), strict=True)]


def _tensors(layer: LayerSpec, layout: Layout, *, predicts: bool = False) -> list[Tensor]:
    shapes, stacks, experts = layer_shapes(layer, layout.ep, predicts=predicts)
    data, of_experts = data_sharding(layout), expert_sharding(layout, experts)
    frozen = [Tensor(shape, data, frozen=True) for shape in frozen_shapes(layer).shapes]
    return [*(Tensor(shape, data) for shape in shapes), *(Tensor(shape, of_experts) for shape in stacks), *frozen]


def _stage_profile(
    stage: Stage,
    setup: Setup,
    layout: Layout,
    update: Update,
    passes: PassesByKey,
    used: set[str],
    context_rank: int,
) -> StageProfile:
    (outside, _), *of_layers = _groups(stage, setup, layout)
    model = shallow(stage.spec)
    forward = next(one_pass for key, one_pass in passes.items() if key.startswith("forward"))
    return StageProfile(
        stage=stage.number,
        layers=tuple(
            RankLayer(
                kind=layer.kind,
                count=count,
                parameters=updated_numbers(tensors),
                states=update.states(tensors),
                held=_held(index, stage, layer, setup, layout, forward, context_rank),
            )
            for index, (layer, (tensors, count)) in enumerate(zip(model.spec.layers, of_layers, strict=True))
        ),
        outside_parameters=updated_numbers(outside),
        outside_states=update.states(outside),
        buffers=buffer_bytes(stage.spec, setup, sharded=layout.is_sharded),
        passes={key: one_pass for key, one_pass in passes.items() if key in used},
    )


def _held(
    index: int,
    stage: Stage,
    layer: LayerSpec,
    setup: Setup,
    layout: Layout,
    forward: StagePass,
    context_rank: int,
) -> int:
    """What a layer keeps for backward: the closed form.

    The first layer of a later stage has its input in a buffer, which is not freed if the layer does not need it; nor is
    the input of the last layer of an earlier stage before that has ended. That is what the simulation says.
    """
    ends = index == len(forward.layers) - 1 and not stage.is_last
    if not ends and (index or stage.is_first):
        return local_layer_held(layer, setup, layout, context_rank)
    memory = forward.layers[index].memory
    return memory.net - memory.gathered - memory.communication


def _shares(groups: Groups, layout: Layout, update: Update, pipeline_rank: int) -> tuple[RankShare, ...]:
    first = pipeline_rank * layout.ranks_of_stage
    return tuple(
        RankShare(
            count=share.count, first_rank=first + share.first_rank, parameters=share.parameters, moments=share.moments
        )
        for share in rank_shares(groups, layout, update)
    )


# --- FLOPs and traffic ---------------------------------------------------------------------------------------------


def _flops(own: Sequence[Stage], setup: Setup, layout: Layout, actions: Sequence[PipelineAction]) -> StepFlops:
    """The FLOPs of the layers of all stages of the rank, with those of the head where it is."""
    found = StepFlops()
    for stage in own:
        found += rank_flops(stage.spec, setup, layout)
        if not stage.is_last:
            found += _head(stage.spec, setup, layout) * -1
        if layout.schedule in HALVED and not stage.is_first:
            found += _recomputed_in_halves(stage, setup, layout, actions)
    return found


def _recomputed_in_halves(stage: Stage, setup: Setup, layout: Layout, actions: Sequence[PipelineAction]) -> StepFlops:
    """What the second halves of backward compute again.

    A checkpoint runs once for each parameter's gradient, and attention with sinks once for theirs.
    """
    assert setup.micro_batches is not None, "a resolved setup"
    halves = sum(each.kind == "weight_backward" and each.stage == stage.number for each in actions)
    if layout.schedule != "dualpipev":  # it has as many halves in any step
        halves = setup.micro_batches
    found, head = StepFlops(), _head(stage.spec, setup, layout)
    for layer, count in stage.spec.layer_groups():
        attention = local_layer(layer, layout.tp).attention
        if isinstance(attention, GroupedQueryAttentionSpec) and attention.sinks and setup.kernels == "fused":
            # The gradient of the sinks is one of the results of the whole kernel.
            assert setup.sequence_length is not None, "a resolved setup"
            again = fused_core_backward(attention, setup.sequence_length, setup.micro_batch_size)
            found += StepFlops(backward=Counts(attention=again)) * (count * halves)
        if layer.recompute_in(setup.recompute) == "full":
            alone = structs.replace(stage.spec, layer_runs=(LayerRun(layer=layer, count=1),), mtp_layers=())
            of_all = (rank_flops(alone, setup, layout) + head * -1).recomputed
            once = Counts(**{name: number // setup.micro_batches for name, number in structs.asdict(of_all).items()})
            found += StepFlops(recomputed=once) * (count * halves * gradients_apart(layer))
    if stage.is_last and setup.loss_chunk is not None:
        of_logits = {name: number // setup.micro_batches for name, number in structs.asdict(head.forward).items()}
        found += StepFlops(recomputed=Counts(**of_logits)) * (
            halves * (1 + len(stage.spec.mtp_layers if setup.mtp else ()))
        )
    for layer in stage.spec.mtp_layers if setup.mtp else ():
        if layer.recompute_in(setup.recompute) == "full":
            alone = structs.replace(stage.spec, mtp_layers=(layer,))
            without = structs.replace(stage.spec, mtp_layers=())
            of_all = (rank_flops(alone, setup, layout) + rank_flops(without, setup, layout) * -1 + head * -1).recomputed
            once = Counts(**{name: number // setup.micro_batches for name, number in structs.asdict(of_all).items()})
            found += StepFlops(recomputed=once) * (halves * (gradients_apart(layer) + OF_PREDICTION))
    return found


def _head(spec: ModelSpec, setup: Setup, layout: Layout) -> StepFlops:
    assert setup.sequence_length is not None and setup.micro_batches is not None, "a resolved setup"
    local = local_model(spec, layout.tp, mtp=setup.mtp)
    head = head_flops(local, setup.sequence_length // layout.cp, setup.micro_batch_size)
    again = head if setup.loss_chunk is not None else Counts()
    return StepFlops(forward=head, backward=head * 2, recomputed=again) * setup.micro_batches


def _further_traffic(
    own: Sequence[Stage],
    messages: Messages,
    actions: tuple[Sequence[PipelineAction], Sequence[PipelineAction]],
    more: int,
    passes: dict[int, PassesByKey],
) -> Traffics:
    """What one more micro-batch sends: its messages, and its part of the passes that a round of `more` adds.

    `actions` are those of a step, and of one with a round more. A pass is as the last of its stage and kind.
    """
    few, many = (Counter((each.stage, each.kind) for each in of_step) for of_step in actions)
    last = {(each.stage, each.kind): each.key for each in actions[0]}
    models = {stage.number: shallow(stage.spec) for stage in own}
    parts = [(messages.traffic(1), 1)]
    for place, number in many.items():
        times, rest = divmod(number - few[place], more)
        assert not rest, "a round adds equally much for each of its micro-batches"
        if times:
            of_pass = pass_traffic(models[place[0]], passes[place[0]][last[place]])
            parts += [(traffic, factor * times) for traffic, factor in of_pass]
    return total_traffic(parts)
