"""What a rank holds by Megatron-LM's rules, in closed form: an estimate, with no module of Megatron-LM behind it.

The modules and the kernels are those of this project; Megatron-LM's rules are applied where they hold something else
than torch's parallelism does:

- the input of each block, gathered over tp for its first product, is gathered again in backward, so that a rank holds
  its own positions alone (Korthikanti et al. 2022, arXiv 2205.05198, §4.2.2);
- a gated activation is one kernel, which computes the activation of the gate again in backward
  (`megatron/core/fusions/fused_bias_swiglu.py`);
- weights are in 16 bits on every rank; gradients are accumulated in fp32 in one buffer; the fp32 master copy and the
  two moments are divided over the data ranks (`docs/source/api-guide/dist_optimizer.md`): 6 + 12 / d bytes a parameter;
- the passes in flight of its two schedules (`megatron/core/pipeline_parallel/schedules.py`).

Held is what is there when the first backward pass of a rank begins. What a pass makes and lets go is not counted, but
for one layer that full recompute computes again.

Example: the 175B model of the paper, 96 layers of width h = 12,288, sequences of s = 2,048, tp 8, pp 8 with 3 stages a
rank. A layer of it holds 34 s h / 8 bytes. The first rank has 3 x 4 layers and, at the end of its warm-up, 31 passes
in flight of 4 layers each: 31 x 4 x 34 s h / 8 = 13,262,389,248 bytes, the 12.3516 GiB of the paper's §6.
"""

from collections import Counter
from collections.abc import Iterator

from msgspec import structs

from counting.counts import Counts, StepFlops
from counting.formulas.held import FP32
from counting.formulas.layouts.flops import local_model, rank_flops
from counting.formulas.local.held import local_layer_held, local_loss_held
from counting.formulas.local.shapes import local_setup
from counting.formulas.parameters import outside_parameters, parameters
from counting.formulas.states import input_bytes
from counting.ranks.result import RankAnalysis
from counting.recipes import ModelStates
from counting.setup import Setup
from counting.step.memory import UPDATE, StepMemory
from counting.step.phase import Phase
from torch_models.layout import Layout
from torch_models.spec import GatedMLPSpec, LayerSpec, ModelSpec
from torch_models.stages import Stage, stages_of

ESTIMATED = "by formula, an estimate"
HELD = "start of backward"
BF16 = 2
MEGATRON_NOTES = (
    "By Megatron-LM's rules of what is held, by formula: an estimate. Nothing is measured, and what a pass makes and "
    "lets go is not counted, but for one layer that full recompute computes again.",
    "Its rules: inputs of tensor parallelism are gathered again in backward, a gated activation is computed again; "
    "weights in 16 bits, gradients in one fp32 buffer, master weights and moments divided over fsdp x cp "
    "(its distributed optimiser).",
    "Not counted: buffers of messages and collectives, workspaces in kernels, the allocator's rounding and gaps.",
)


def megatron_classes(spec: ModelSpec, setup: Setup, layout: Layout) -> tuple[RankAnalysis, ...]:
    """Return the classes of ranks of a resolved layout: one for each rank of the pipeline."""
    stages = stages_of(spec, layout)
    return tuple(
        _class([stages[number] for number in layout.stages_of_rank(rank)], setup, layout, rank)
        for rank in range(layout.pp)
    )


def megatron_layer_held(spec: LayerSpec, setup: Setup, layout: Layout) -> int:
    """Return bytes that one layer's forward pass holds on a rank.

    That of `local_layer_held`, without the positions of other ranks in the gathered inputs of its two blocks, and
    without the activation of the gate. Ranks of cp hold their part of the positions, and no others' keys and values.

    Llama-3-8B, tp 2, T = 2,048: 188,882,968 bytes, less two halves of 16,777,216, less 29,360,128.
    """
    setup, layout = local_setup(setup, layout.cp), _without_context(layout)
    held = local_layer_held(spec, setup, layout)
    if setup.recompute == "full":
        return held
    return held - 2 * _other_positions(spec.hidden_size, setup, layout) - _activated(spec, setup, layout)


def megatron_loss_held(spec: ModelSpec, setup: Setup, layout: Layout) -> int:
    """Return bytes that final norm, head and loss add to those of the layers; the head too gathers its input again."""
    setup, layout = local_setup(setup, layout.cp), _without_context(layout)
    return local_loss_held(spec, setup, layout) - _other_positions(spec.hidden_size, setup, layout)


def passes_in_flight(layout: Layout, rank: int, micro_batches: int) -> Counter[int]:
    """Return how many passes of each stage of a pipeline's rank are in flight when its first backward pass begins.

    With one stage a rank: its distance from the end, itself included. With v stages each, the warm-up has 2 passes for
    each rank behind it and (v - 1) p more; then one more pass begins the steady part. The passes go through the stages
    of the rank in turn, p micro-batches at a time. So the first rank has p v + p - 1 in flight: 1 + (p - 1) / (p v)
    times those of p micro-batches (Korthikanti et al. 2022, §4.2.3; Narayanan et al. 2021, arXiv 2104.04473, §2.2).
    """
    ranks, stages = layout.pp, layout.stages_of_rank(rank)
    each = len(stages)
    if each == 1:
        return Counter({stages[0]: min(ranks - rank, micro_batches)})
    passes = min(2 * (ranks - rank - 1) + (each - 1) * ranks + 1, each * micro_batches)
    return Counter(stages[number // ranks % each] for number in range(passes))


def megatron_states(numbers: int, shards: int) -> ModelStates:
    """Return the model states of a rank with so many parameters: 6 + 12 / d bytes each, over d `shards`."""
    share = -(-numbers // shards)
    return ModelStates(weights=BF16 * numbers, gradients=FP32 * numbers, masters=FP32 * share, moments=2 * FP32 * share)


def _class(stages: list[Stage], setup: Setup, layout: Layout, rank: int) -> RankAnalysis:
    assert setup.micro_batches is not None, "a resolved setup"
    flight = passes_in_flight(layout, rank, setup.micro_batches)
    numbers = sum(_parameters(stage, layout) for stage in stages)
    flops = sum((_flops(stage, setup, layout) for stage in stages), StepFlops())
    return RankAnalysis(
        count=layout.ranks_of_stage,
        first_rank=rank * layout.ranks_of_stage,
        stage=rank,
        stages=tuple(stage.number for stage in stages),
        in_flight=flight.total(),
        parameters=-(-numbers // layout.shards),
        memory=_memory(stages, setup, layout, megatron_states(numbers, layout.shards), flight),
        context_rank=0,
        forward_flops=flops.full_forward.total,
        model_flops=flops.model,
        hardware_flops=flops.hardware,
        skipped_by_causality=flops.skipped,
        forward_flops_by_component=flops.full_forward.by_component(),
        collectives=(),
        proof=ESTIMATED,
    )


def _memory(stages: list[Stage], setup: Setup, layout: Layout, states: ModelStates, flight: Counter[int]) -> StepMemory:
    spec = stages[-1].spec
    held = input_bytes(spec, local_setup(setup, layout.cp))
    for stage in stages:
        held += flight[stage.number] * _stage_held(stage, setup, layout)
    loss = megatron_loss_held(spec, setup, layout) if stages[-1].is_last else 0
    again = max(_layers_again(stages, setup, layout)) if setup.recompute == "full" else 0
    phases = (_phase(HELD, states, held, loss, again), _phase(UPDATE, states, 0, 0, 0))
    return StepMemory(
        states=states,
        buffers=0,
        phases=phases,
        layer_backward_peak_bytes=(),
        peak_phase=HELD,
        peak_bytes=phases[0].peak_bytes,
        proof=ESTIMATED,
        notes=MEGATRON_NOTES,
    )


def _stage_held(stage: Stage, setup: Setup, layout: Layout) -> int:
    return sum(megatron_layer_held(layer, setup, layout) * count for layer, count in stage.spec.layer_groups())


def _layers_again(stages: list[Stage], setup: Setup, layout: Layout) -> Iterator[int]:
    """What each kind of layer holds when it is computed again in backward."""
    whole = structs.replace(setup, recompute="none")
    return (megatron_layer_held(layer, whole, layout) for stage in stages for layer, _ in stage.spec.layer_groups())


def _phase(name: str, states: ModelStates, activations: int, logits_and_loss: int, transients: int) -> Phase:
    return Phase(
        name=name,
        micro_batch=None,
        layer=None,
        layer_kind=None,
        parameters=states.weights,
        gradients=states.gradients,
        optimizer_state=states.masters + states.moments,
        activations=activations,
        gathered_parameters=0,
        communication_buffers=0,
        logits_and_loss=logits_and_loss,
        transients=transients,
    )


def _parameters(stage: Stage, layout: Layout) -> int:
    """Parameters of the layers of a stage on one rank of tp, with embedding, final norm and head where they are.

    A head that is the embedding is there twice if the stages are several.
    """
    local = local_model(stage.spec, layout.tp, mtp=False)
    found = sum(parameters(layer).total * count for layer, count in local.layer_groups())
    outside = outside_parameters(structs.replace(local, tie_word_embeddings=False))
    if stage.is_first:
        found += outside.word_embedding
    if stage.is_last:
        tied = local.tie_word_embeddings and stage.is_first
        found += outside.norm + (0 if tied else outside.lm_head)
    return found


def _flops(stage: Stage, setup: Setup, layout: Layout) -> StepFlops:
    """FLOPs of a rank in one stage and one step; the head is in the last stage."""
    found = rank_flops(stage.spec, setup, layout)
    if stage.is_last:
        return found
    return StepFlops(
        forward=_without_head(found.forward),
        backward=_without_head(found.backward),
        recomputed=_without_head(found.recomputed),
        skipped_by_causality=_without_head(found.skipped_by_causality),
    )


def _without_head(counts: Counts) -> Counts:
    return structs.replace(counts, lm_head=0)


def _without_context(layout: Layout) -> Layout:
    return structs.replace(layout, cp=1)


def _other_positions(hidden_size: int, setup: Setup, layout: Layout) -> int:
    """Bytes of a gathered tensor of the residual stream that are of other ranks' positions."""
    whole = setup.precision_recipe.activation_bytes * setup.tokens * hidden_size
    return whole - whole // layout.tp if layout.sequence_parallel else 0


def _activated(spec: LayerSpec, setup: Setup, layout: Layout) -> int:
    """Bytes of the activation of the gate, which a rank would hold beside gate, other factor and their product."""
    feed_forward = spec.feed_forward
    assert isinstance(feed_forward, GatedMLPSpec), "a layout that is checked"
    return setup.precision_recipe.activation_bytes * setup.tokens * (feed_forward.intermediate_size // layout.tp)
