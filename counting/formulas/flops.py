"""FLOPs in closed form, of a forward pass and of a training step: one formula per spec type, from the spec alone.

Torch-free; no module is read: the numbers are held against fvcore's trace and torch's dispatch. One multiply-add is
2 FLOPs; only matrix multiplications count; attention counts the full S x S square. Looking an embedding up, its
gradient, norms, softmax and the optimiser multiply no matrices.

Legend: B batch, S sequence length, T = B * S tokens, D hidden_size, F intermediate_size, V vocab_size, E experts,
K experts per token, H query heads, G key/value heads.
"""

from collections import Counter
from functools import singledispatch

import msgspec

from counting.counts import AttentionCore, Counts, StepFlops
from counting.formulas.parameters import latent_attention_matrices
from counting.setup import Setup
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
    Recompute,
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
    window = visited_keys(spec, sequence_length)
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


def visited_keys(spec: GroupedQueryAttentionSpec, sequence_length: int) -> int:
    """How many keys a kernel visits for each query: those of the window, or all."""
    return min(spec.window or sequence_length, sequence_length)


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
def _(spec: GatedMLPSpec | ClampedMLPSpec, sequence_length: int, batch_size: int) -> Counts:
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


def head_flops(spec: ModelSpec, sequence_length: int, batch_size: int) -> Counts:
    """Of the logits: D x V per token."""
    return Counts(lm_head=2 * batch_size * sequence_length * spec.hidden_size * spec.vocab_size)


def mtp_forward_flops(spec: ModelSpec, sequence_length: int, batch_size: int) -> Counts:
    """Of the multi-token-prediction modules: projection, layer, and the shared head run once more for each."""
    run = (sequence_length, batch_size)
    total = Counts()
    for layer in spec.mtp_layers:
        total += forward_flops(layer, *run) + mtp_projection_flops(layer, *run) + head_flops(spec, *run)
    return total


def mtp_projection_flops(spec: LayerSpec, sequence_length: int, batch_size: int) -> Counts:
    """Of [embedding; hidden state] to the layer's input: 2D x D per token."""
    return Counts(mlp=2 * batch_size * sequence_length * 2 * spec.hidden_size * spec.hidden_size)


# --- A training step -------------------------------------------------------------------------------------------


def training_flops(spec: ModelSpec, setup: Setup) -> StepFlops:
    """Of one training step over one micro-batch; `setup` is resolved, and its `mtp` says whether `mtp_layers` train.

    The head's logits are made for the main model and again for each multi-token-prediction layer (DeepSeek-V3, arXiv
    2412.19437, eq. 23). A loss in chunks of fewer tokens than there are keeps no logits, and makes them once more.
    """
    assert setup.sequence_length is not None and setup.mtp is not None, "a resolved setup"
    run = (setup.sequence_length, setup.micro_batch_size)
    how = (setup.kernels, setup.recompute)
    mtp_layers = spec.mtp_layers if setup.mtp else ()
    chunked = setup.loss_chunk is not None
    head = head_flops(spec, *run)
    heads = StepFlops(forward=head, backward=head * 2, recomputed=head * chunked) * (1 + len(mtp_layers))
    layers = (layer_step_flops(layer, *run, *how) * count for layer, count in spec.layer_groups())
    further = (mtp_layer_step_flops(layer, *run, *how) * count for layer, count in Counter(mtp_layers).items())
    return sum((*layers, *further), heads)


def layer_step_flops(
    spec: LayerSpec, sequence_length: int, batch_size: int, kernels: Kernels, recompute: Recompute
) -> StepFlops:
    """Of one decoder layer. Each product A B of the forward pass is two of the backward pass: dC B^T and A^T dC.

    So it is for projections (Kaplan et al. 2020, arXiv 2001.08361, §2.1) and for the two products of eager attention;
    fused attention keeps too little for it, see `fused_core_backward`. Full recompute is the layer's forward pass once
    more (Chen et al. 2016, arXiv 1604.06174), selective recompute that of the attention core (Korthikanti et al. 2022,
    arXiv 2205.05198, §5).
    """
    run = (sequence_length, batch_size)
    spec = as_run(spec, kernels)
    forward = forward_flops(spec, *run)
    core = attention_core(spec.attention, *run).as_run
    core_backward = fused_core_backward(spec.attention, *run) if kernels == "fused" else 2 * core
    return StepFlops(
        forward=forward,
        backward=(forward - Counts(attention=core)) * 2 + Counts(attention=core_backward),
        recomputed={"none": Counts(), "selective": Counts(attention=core), "full": forward}[recompute],
    )


def mtp_layer_step_flops(
    spec: LayerSpec, sequence_length: int, batch_size: int, kernels: Kernels, recompute: Recompute
) -> StepFlops:
    """Of one multi-token-prediction layer, without the head: a decoder layer behind a projection of 2D x D.

    DeepSeek-V3, arXiv 2412.19437, eq. 21-22. The projection lies within what full recompute runs again.
    """
    projection = mtp_projection_flops(spec, sequence_length, batch_size)
    again = projection * (recompute == "full")
    layer = layer_step_flops(spec, sequence_length, batch_size, kernels, recompute)
    return layer + StepFlops(forward=projection, backward=projection * 2, recomputed=again)


@singledispatch
def fused_core_backward(spec: AttentionSpec, sequence_length: int, batch_size: int) -> int:
    """The backward pass of a fused attention core: five products, where the forward pass has two.

    Query by key for the scores, which were not kept, and the gradients of probabilities, values, queries and keys
    (Dao 2023, arXiv 2307.08691, §3.1.2): 2.5 times the forward pass if all heads are of one size. The pairs visited
    are those of the forward pass: S times the window where there is one.
    """
    raise AssertionError(f"no formula of fused attention's backward pass for {type(spec).__name__}")


@fused_core_backward.register
def _(spec: GroupedQueryAttentionSpec, sequence_length: int, batch_size: int) -> int:
    """2 head_dim for each of the five and each pair, in each of H heads; shared keys spare no product."""
    pairs = sequence_length * visited_keys(spec, sequence_length)
    return 2 * batch_size * spec.num_attention_heads * pairs * 5 * spec.head_dim


@fused_core_backward.register
def _(spec: MultiHeadLatentAttentionSpec, sequence_length: int, batch_size: int) -> int:
    """Scores and the gradients of queries and keys over nope + rope channels, the other two over v_head_dim."""
    channels = 3 * (spec.qk_nope_head_dim + spec.qk_rope_head_dim) + 2 * spec.v_head_dim
    return 2 * batch_size * spec.num_attention_heads * sequence_length**2 * channels
