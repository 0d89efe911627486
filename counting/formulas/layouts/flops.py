"""FLOPs of one rank in closed form: those of its part of each layer, and of the head's part of the vocabulary.

A rank of t computes 1 / t of every product with heads, intermediate channels or words, and the others whole, as every
rank does. So t times a rank's forward FLOPs are those of the undivided model and (t - 1) times the replicated part:

    t x rank_flops.forward = training_flops.forward + (t - 1) x micro_batches x replicated_forward_flops

With expert parallelism a rank computes the rows that its experts receive: as many as it sends, if routing is balanced.

With context parallelism a rank of c has T / c tokens. Ring attention computes the square of its own positions and, with
each of the other ranks' positions, half a square: (c + 1) / 2 squares of (S / c)^2, which is (c + 1) / (2 c^2) of S^2
pairs. Without causality it would be c squares; the (c - 1) / 2 that are left are skipped.

Example: Llama-3-8B, cp 4, one sequence of 8,192 tokens, a layer: the full square is 4 x 8,192^2 x 4,096 = 2^40 FLOPs,
and a rank computes 5 / 32 of them, 171,798,691,840.
"""

import msgspec

from counting.counts import Counts, StepFlops
from counting.formulas.flops import (
    attention_core,
    forward_flops,
    fused_core_backward,
    mtp_projection_flops,
    training_flops,
)
from counting.formulas.local.shapes import Division, division_of, local_layer, local_setup
from counting.setup import Setup
from torch_models.layout import Layout
from torch_models.spec import (
    LayerRun,
    LayerSpec,
    MixtureOfExpertsSpec,
    ModelSpec,
    MultiHeadLatentAttentionSpec,
)

CORE_AGAIN = ("selective", "full")  # ways to recompute that run the core of attention again


def local_model(spec: ModelSpec, tp: int, *, mtp: bool | None) -> ModelSpec:
    """Return the model that a rank of tp has: local layers and words, and layers of `mtp` if they are trained."""
    if not mtp:
        spec = msgspec.structs.replace(spec, mtp_layers=())
    if tp == 1:
        return spec
    return msgspec.structs.replace(
        spec,
        vocab_size=spec.vocab_size // tp,
        layer_runs=tuple(LayerRun(layer=local_layer(run.layer, tp), count=run.count) for run in spec.layer_runs),
        mtp_layers=tuple(local_layer(layer, tp) for layer in spec.mtp_layers),
    )


def rank_flops(spec: ModelSpec, setup: Setup, layout: Layout) -> StepFlops:
    """Return the FLOPs of one rank in one step; `setup` and `layout` are resolved."""
    division, setup = division_of(layout), local_setup(setup, layout.cp)
    local = local_model(spec, division.tp, mtp=setup.mtp)
    found = training_flops(local, setup)
    if division.sequence_parallel:
        projections = _projection_step(spec, setup)
        found += projections * -1 + _divided(projections, division.tp)
    if division.ep > 1:
        found += _further_rows(spec, setup, division)
    if division.cp > 1:
        found += _other_positions(local, setup, division.cp)
    return found


def replicated_forward_flops(spec: ModelSpec, setup: Setup, *, sequence_parallel: bool = True) -> int:
    """Return the FLOPs of one micro-batch's forward pass that every rank of tp computes whole.

    - attention: projections to latents, which have no heads;
    - router: every rank routes all tokens, and computes the gate of the shared experts for all;
    - without sequence parallelism, the projection of multi-token prediction; else each rank projects its positions.
    """
    assert setup.sequence_length is not None, "a resolved setup"
    mtp_layers = spec.mtp_layers if setup.mtp else ()
    layers = [*spec.layer_groups(), *((layer, 1) for layer in mtp_layers)]
    found = sum(_replicated_of_layer(layer, setup.tokens) * count for layer, count in layers)
    if not sequence_parallel:
        run = (setup.sequence_length, setup.micro_batch_size)
        found += sum(mtp_projection_flops(layer, *run).total for layer in mtp_layers)
    return found


def _replicated_of_layer(layer: LayerSpec, tokens: int) -> int:
    """Two FLOPs for each token and number of a matrix that has neither heads nor intermediate channels."""
    outputs = 0
    attention, feed_forward = layer.attention, layer.feed_forward
    if isinstance(attention, MultiHeadLatentAttentionSpec):
        outputs += (attention.q_lora_rank or 0) + attention.kv_lora_rank + attention.qk_rope_head_dim
    if isinstance(feed_forward, MixtureOfExpertsSpec):
        outputs += feed_forward.router.num_experts + feed_forward.shared_expert_gate
    return 2 * tokens * layer.hidden_size * outputs


def _further_rows(spec: ModelSpec, setup: Setup, division: Division) -> StepFlops:
    """FLOPs of the rows that the busiest rank's experts receive beyond those that it sends."""
    assert setup.micro_batches is not None, "a resolved setup"
    mtp_layers = spec.mtp_layers if setup.mtp else ()
    found = StepFlops()
    for layer, count in [*spec.layer_groups(), *((layer, 1) for layer in mtp_layers)]:
        mixture = layer.feed_forward
        if isinstance(mixture, MixtureOfExpertsSpec):
            rows = setup.tokens * mixture.router.top_k
            further = division.received_rows(rows) - rows
            products = Counts(routed_experts=forward_flops(mixture.expert, 1, 1).total * further)
            again = layer.recompute_in(setup.recompute) in ("full", "per_op")
            found += _products(products, again=again) * (count * setup.micro_batches)
    return found


def _other_positions(local: ModelSpec, setup: Setup, cp: int) -> StepFlops:
    """FLOPs of attention with the positions of the other ranks of cp: (c - 1) / 2 squares; as many are skipped.

    `local` is the rank's part of the model, and `setup` has its positions.
    """
    assert setup.sequence_length is not None and setup.micro_batches is not None, "a resolved setup"
    run = (setup.sequence_length, setup.micro_batch_size)
    mtp_layers = local.mtp_layers if setup.mtp else ()
    found = StepFlops()
    for layer, count in [*local.layer_groups(), *((layer, 1) for layer in mtp_layers)]:
        square = attention_core(layer.attention, *run).as_run
        others = Counts(attention=square * (cp - 1) // 2)
        found += StepFlops(
            forward=others,
            backward=Counts(attention=fused_core_backward(layer.attention, *run) * (cp - 1) // 2),
            recomputed=others * (layer.recompute_in(setup.recompute) in CORE_AGAIN),
            skipped_by_causality=others,
        ) * (count * setup.micro_batches)
    return found


def _projection_step(spec: ModelSpec, setup: Setup) -> StepFlops:
    """FLOPs of the projections of multi-token prediction on all positions, of one step."""
    assert setup.sequence_length is not None and setup.micro_batches is not None, "a resolved setup"
    run = (setup.sequence_length, setup.micro_batch_size)
    found = StepFlops()
    for layer in spec.mtp_layers if setup.mtp else ():
        again = layer.recompute_in(setup.recompute) == "full"
        found += _products(mtp_projection_flops(layer, *run), again=again)
    return found * setup.micro_batches


def _products(forward: Counts, *, again: bool) -> StepFlops:
    """A step with these products: two in backward for each, and the same `again` if they are recomputed."""
    return StepFlops(forward=forward, backward=forward * 2, recomputed=forward * again)


def _divided(step: StepFlops, ranks: int) -> StepFlops:
    def part(counts: Counts) -> Counts:
        return Counts(**{name: number // ranks for name, number in msgspec.structs.asdict(counts).items()})

    return StepFlops(forward=part(step.forward), backward=part(step.backward), recomputed=part(step.recomputed))
