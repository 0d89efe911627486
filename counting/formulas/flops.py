"""Forward FLOPs in closed form: one formula per spec type, from the spec alone.

Torch-free; no module is read: the numbers are held against fvcore's trace and torch's dispatch. One multiply-add is
2 FLOPs; only matrix multiplications count; attention counts the full S x S square.

Legend: B batch, S sequence length, T = B * S tokens, D hidden_size, F intermediate_size, V vocab_size, E experts,
K experts per token, H query heads, G key/value heads.
"""

from functools import singledispatch

import msgspec

from counting.counts import AttentionCore, Counts
from counting.formulas.parameters import latent_attention_matrices
from torch_models.spec import (
    AttentionSpec,
    ClampedMLPSpec,
    GatedMLPSpec,
    GroupedQueryAttentionSpec,
    Kernels,
    LayerSpec,
    MixtureOfExpertsSpec,
    ModelSpec,
    MultiHeadLatentAttentionSpec,
    Spec,
)


@singledispatch
def forward_flops(spec: Spec, sequence_length: int, batch_size: int) -> Counts:
    """FLOPs of one forward pass over `batch_size` sequences of `sequence_length` tokens, by component."""
    raise AssertionError(f"no FLOP formula for {type(spec).__name__}")


@singledispatch
def attention_core(spec: AttentionSpec, sequence_length: int, batch_size: int) -> AttentionCore:
    """The products of two activations, scores and weighted values, by how many keys each query meets.

    Of the full square a causal kernel needs half (the convention of Dao 2023, arXiv 2307.08691, §4.1: half, not
    (S + 1) / 2S). With a window of W < S a kernel visits a band of S W pairs, and causally, by the same convention,
    S W - W^2 / 2 of them.
    """
    raise AssertionError(f"no attention formula for {type(spec).__name__}")


# --- Attention -------------------------------------------------------------------------------------------------


@attention_core.register
def _(spec: GroupedQueryAttentionSpec, sequence_length: int, batch_size: int) -> AttentionCore:
    """2 head_dim for the score of a pair and as much for its value, in each of H heads."""
    window = min(spec.window or sequence_length, sequence_length)
    per_pair = 2 * 2 * batch_size * spec.num_attention_heads * spec.head_dim
    return AttentionCore(
        as_run=per_pair * sequence_length * window,
        causal=per_pair // 2 * (2 * sequence_length * window - window**2),
        full_square=per_pair * sequence_length**2,
    )


@forward_flops.register
def _(spec: GroupedQueryAttentionSpec, sequence_length: int, batch_size: int) -> Counts:
    """Each projection's weight once per token, then the core (Kaplan et al. 2020, arXiv 2001.08361, table 1).

    Kaplan's row "Mask" is half of our core: the scores alone.
    """
    heads = 2 * spec.num_attention_heads + 2 * spec.num_key_value_heads  # q and o, k and v
    projections = 2 * batch_size * sequence_length * spec.hidden_size * heads * spec.head_dim
    return Counts(attention=projections + attention_core(spec, sequence_length, batch_size).as_run)


@attention_core.register
def _(spec: MultiHeadLatentAttentionSpec, sequence_length: int, batch_size: int) -> AttentionCore:
    """Keys have nope + rope channels, values v_head_dim: the two products differ in size."""
    channels = spec.qk_nope_head_dim + spec.qk_rope_head_dim + spec.v_head_dim
    square = 2 * batch_size * spec.num_attention_heads * sequence_length**2 * channels
    return AttentionCore(as_run=square, causal=square // 2, full_square=square)


@forward_flops.register
def _(spec: MultiHeadLatentAttentionSpec, sequence_length: int, batch_size: int) -> Counts:
    """Training expands the latents to full keys and values; the weight absorption of inference is not used."""
    tokens = batch_size * sequence_length
    projections = sum(2 * tokens * rows * columns for rows, columns in latent_attention_matrices(spec))
    return Counts(attention=projections + attention_core(spec, sequence_length, batch_size).as_run)


def without_window(spec: AttentionSpec) -> AttentionSpec:
    """The same attention, seeing all the way back."""
    return msgspec.structs.replace(spec, window=None) if isinstance(spec, GroupedQueryAttentionSpec) else spec


def as_run(spec: LayerSpec, kernels: Kernels) -> LayerSpec:
    """The layer whose FLOPs are spent: eager kernels multiply the full square and hide what a window excludes."""
    if kernels == "fused":
        return spec
    return msgspec.structs.replace(spec, attention=without_window(spec.attention))


# --- Feed-forward ----------------------------------------------------------------------------------------------


@forward_flops.register
def _(spec: GatedMLPSpec, sequence_length: int, batch_size: int) -> Counts:
    """Three products of D x F per token."""
    return Counts(mlp=3 * 2 * batch_size * sequence_length * spec.hidden_size * spec.intermediate_size)


@forward_flops.register
def _(spec: ClampedMLPSpec, sequence_length: int, batch_size: int) -> Counts:
    """Three products of D x F per token."""
    return Counts(mlp=3 * 2 * batch_size * sequence_length * spec.hidden_size * spec.intermediate_size)


@forward_flops.register
def _(spec: MixtureOfExpertsSpec, sequence_length: int, batch_size: int) -> Counts:
    """Every token is routed, and runs through K experts and the shared ones, however it is routed."""
    router, run = spec.router, (sequence_length, batch_size)
    return Counts(
        router=2 * batch_size * sequence_length * router.hidden_size * router.num_experts,
        routed_experts=router.top_k * forward_flops(spec.expert, *run).total,
        shared_experts=forward_flops(spec.shared_experts, *run).total if spec.shared_experts else 0,
    )


# --- Layers and models -----------------------------------------------------------------------------------------


@forward_flops.register
def _(spec: LayerSpec, sequence_length: int, batch_size: int) -> Counts:
    """Attention and feed-forward; norms and residual sums multiply no matrices."""
    run = (sequence_length, batch_size)
    return forward_flops(spec.attention, *run) + forward_flops(spec.feed_forward, *run)


@forward_flops.register
def _(spec: ModelSpec, sequence_length: int, batch_size: int) -> Counts:
    """The layers, and the head on every position; looking an embedding up is no product."""
    run = (sequence_length, batch_size)
    layers = sum((forward_flops(layer, *run) * count for layer, count in spec.layer_groups()), Counts())
    return layers + head_flops(spec, *run)


def head_flops(spec: ModelSpec, sequence_length: int, batch_size: int) -> Counts:
    """Of the logits: D x V per token."""
    return Counts(lm_head=2 * batch_size * sequence_length * spec.hidden_size * spec.vocab_size)


def mtp_forward_flops(spec: ModelSpec, sequence_length: int, batch_size: int) -> Counts:
    """Of the multi-token-prediction modules: projection, layer, and the shared head run once more for each."""
    run = (sequence_length, batch_size)
    total = Counts()
    for layer in spec.mtp_layers:
        projection = 2 * batch_size * sequence_length * 2 * spec.hidden_size * spec.hidden_size
        total += forward_flops(layer, *run) + Counts(mlp=projection) + head_flops(spec, *run)
    return total
