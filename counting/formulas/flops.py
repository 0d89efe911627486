"""FLOPs of a forward pass and of a training step in closed form: one formula per spec type, from the spec alone.

Torch-free; no module is read, so the numbers can be compared with fvcore's trace and torch's dispatch. One multiply-add
is 2 FLOPs. Only matrix multiplications count; attention counts the full S x S square. Embedding look-up and its
gradient, norms, softmax and the optimiser contain no matrix multiplication.

Legend: B batch, S sequence length, T = B * S tokens, D hidden_size, F intermediate_size, V vocab_size, E experts,
K experts per token, H query heads, G key/value heads.
"""

from collections import Counter
from functools import singledispatch

import msgspec

from counting.counts import AttentionCore, Counts, StepFlops
from counting.formulas.parameters import indexer_matrices, latent_attention_matrices
from counting.formulas.per_op import kept_products_flops
from counting.setup import Setup
from torch_models.spec import (
    MAX_SEQUENCE_LENGTH,
    AttentionSpec,
    ClampedMLPSpec,
    GatedMLPSpec,
    GroupedQueryAttentionSpec,
    IndexerSpec,
    Kernels,
    LayerSpec,
    MixtureOfExpertsSpec,
    MLPSpec,
    ModelSpec,
    MultiHeadLatentAttentionSpec,
    Recompute,
    Spec,
)


@singledispatch
def forward_flops(spec: Spec, sequence_length: int, batch_size: int) -> Counts:
    """Return FLOPs by component of one forward pass over `batch_size` sequences of `sequence_length` tokens."""
    raise AssertionError(f"no FLOP formula for {type(spec).__name__}")


@singledispatch
def attention_core(spec: AttentionSpec, sequence_length: int, batch_size: int) -> AttentionCore:
    """Return the FLOPs of the two products of activations, scores and weighted values, for three counts of pairs.

    The full square has S^2 pairs of query and key. A causal kernel needs half of them (the convention of Dao 2023,
    arXiv 2307.08691, §4.1: half, not (S + 1) / 2S). With a window of W < S a kernel computes a band of S W pairs; the
    causal part of it, by the same convention, is S W - W^2 / 2 pairs. With chunks of C < S it computes the squares on
    the diagonal, C^2 pairs for each whole chunk and r^2 for a rest of r positions; the causal part is half of them.
    """
    raise AssertionError(f"no attention formula for {type(spec).__name__}")


# --- Attention -------------------------------------------------------------------------------------------------


@attention_core.register
def _(spec: GroupedQueryAttentionSpec, sequence_length: int, batch_size: int) -> AttentionCore:
    """Each pair costs 2 head_dim for its score and 2 head_dim for its value, in each of H heads."""
    window = min(spec.window or sequence_length, sequence_length)
    pairs = visited_pairs(spec, sequence_length)
    per_pair = 2 * 2 * batch_size * spec.num_attention_heads * spec.head_dim
    return AttentionCore(
        as_run=per_pair * pairs,
        causal=per_pair // 2 * (pairs if spec.chunk else 2 * pairs - window**2),
        full_square=per_pair * sequence_length**2,
    )


@forward_flops.register
def _(spec: GroupedQueryAttentionSpec, sequence_length: int, batch_size: int) -> Counts:
    """Each projection is applied once per token; the core is added (Kaplan et al. 2020, arXiv 2001.08361, table 1).

    Kaplan's row "Mask" is half of our core, because it counts the scores only.
    """
    key_heads = (1 if spec.keys_as_values else 2) * spec.num_key_value_heads
    heads = 2 * spec.num_attention_heads + key_heads  # q and o, k and v
    projections = 2 * batch_size * sequence_length * spec.hidden_size * heads * spec.head_dim
    return Counts(attention=projections + attention_core(spec, sequence_length, batch_size).as_run)


@attention_core.register
def _(spec: MultiHeadLatentAttentionSpec, sequence_length: int, batch_size: int) -> AttentionCore:
    """Keys have nope + rope channels and values have v_head_dim, so the two products differ in size.

    With an indexer a query visits the K keys that it chooses (DeepSeek-V3.2, arXiv 2512.02556, eq. 2). Those that
    causality leaves are as many as with a window of K.
    """
    channels = spec.qk_nope_head_dim + spec.qk_rope_head_dim + spec.v_head_dim
    per_pair, keys = 2 * batch_size * spec.num_attention_heads * channels, chosen_keys(spec, sequence_length)
    return AttentionCore(
        as_run=per_pair * sequence_length * keys,
        causal=per_pair * (2 * sequence_length * keys - keys**2) // 2,
        full_square=per_pair * sequence_length**2,
    )


@forward_flops.register
def _(spec: MultiHeadLatentAttentionSpec, sequence_length: int, batch_size: int) -> Counts:
    """The projections of DeepSeek-V2 (arXiv 2405.04434), section 2.1 and appendix C, once per token, and the core.

    Training expands the latents to full keys and values; the weight absorption of inference is not used.
    """
    tokens = batch_size * sequence_length
    projections = sum(2 * tokens * rows * columns for rows, columns in latent_attention_matrices(spec))
    indexer = 0
    if spec.indexer is not None:
        indexer = sum(2 * tokens * rows * columns for rows, columns in indexer_matrices(spec, spec.indexer))
        indexer += index_scores_flops(spec.indexer, sequence_length, batch_size)
    return Counts(
        attention=projections + attention_core(spec, sequence_length, batch_size).as_run,
        indexer=indexer,
    )


def index_scores_flops(spec: IndexerSpec, sequence_length: int, batch_size: int) -> int:
    """Return the FLOPs of an indexer's scores, of all S^2 pairs: sum_h w_h relu(q_h k) (arXiv 2512.02556, eq. 1).

    A pair costs 2 head_dim for the score of each head, and 2 for its part in the weighted sum.
    """
    return 2 * batch_size * sequence_length**2 * spec.num_heads * (spec.head_dim + 1)


def visited_pairs(spec: GroupedQueryAttentionSpec, sequence_length: int) -> int:
    """Return the pairs of query and key that a kernel computes: S min(window, S), or the squares of all chunks.

    Llama-4's chunks of 8,192 in a sequence of 20,000: 2 x 8,192^2 + 3,616^2 = 147,293,184 pairs.
    """
    if spec.chunk is None:
        return sequence_length * min(spec.window or sequence_length, sequence_length)
    whole, rest = divmod(sequence_length, spec.chunk)
    return whole * spec.chunk**2 + rest**2


def chosen_keys(spec: MultiHeadLatentAttentionSpec, sequence_length: int) -> int:
    """Return the number of keys that a kernel computes for each query: those that an indexer chooses, or all S."""
    return sequence_length if spec.indexer is None else min(spec.indexer.top_k, sequence_length)


def without_window(spec: AttentionSpec) -> AttentionSpec:
    """Return the same attention without a window and without chunks, or with an indexer that chooses every key."""
    if isinstance(spec, GroupedQueryAttentionSpec):
        return msgspec.structs.replace(spec, window=None, chunk=None)
    if spec.indexer is None:
        return spec
    every_key = msgspec.structs.replace(spec.indexer, top_k=MAX_SEQUENCE_LENGTH)
    return msgspec.structs.replace(spec, indexer=every_key)


def as_run(spec: LayerSpec, kernels: Kernels) -> LayerSpec:
    """Return the layer whose FLOPs are executed: eager kernels compute the full square and mask the rest after."""
    if kernels == "fused":
        return spec
    return msgspec.structs.replace(spec, attention=without_window(spec.attention))


# --- Feed-forward ----------------------------------------------------------------------------------------------


@forward_flops.register
def _(spec: GatedMLPSpec | ClampedMLPSpec, sequence_length: int, batch_size: int) -> Counts:
    """Three products with a D x F matrix per token: gate, up, down (Shazeer 2020, arXiv 2002.05202, eq. 6)."""
    return Counts(mlp=3 * 2 * batch_size * sequence_length * spec.hidden_size * spec.intermediate_size)


@forward_flops.register
def _(spec: MLPSpec, sequence_length: int, batch_size: int) -> Counts:
    """Two products with a D x F matrix per token: up and down (Kaplan et al. 2020, arXiv 2001.08361, table 1)."""
    return Counts(mlp=2 * 2 * batch_size * sequence_length * spec.hidden_size * spec.intermediate_size)


@forward_flops.register
def _(spec: MixtureOfExpertsSpec, sequence_length: int, batch_size: int) -> Counts:
    """Every token passes the router, K routed experts and the shared experts, whichever experts are chosen.

    As in DeepSeek-V3 (arXiv 2412.19437), section 2.1.2, equations 12 to 15. A gate of the shared experts multiplies
    each token with a vector of D numbers (Qwen1.5-MoE).
    """
    router, run = spec.router, (sequence_length, batch_size)
    shared = forward_flops(spec.shared_experts, *run).total if spec.shared_experts else 0
    gate = spec.shared_expert_gate * 2 * batch_size * sequence_length * router.hidden_size
    return Counts(
        router=2 * batch_size * sequence_length * router.hidden_size * router.num_experts,
        routed_experts=router.top_k * forward_flops(spec.expert, *run).total,
        shared_experts=shared + gate,
    )


# --- Layers and models -----------------------------------------------------------------------------------------


@forward_flops.register
def _(spec: LayerSpec, sequence_length: int, batch_size: int) -> Counts:
    """Attention and feed-forward, with a parallel MLP; norms and sums contain no matrix multiplication."""
    run = (sequence_length, batch_size)
    parallel = forward_flops(spec.parallel_mlp, *run) if spec.parallel_mlp else Counts()
    return forward_flops(spec.attention, *run) + forward_flops(spec.feed_forward, *run) + parallel


def head_flops(spec: ModelSpec, sequence_length: int, batch_size: int) -> Counts:
    """Return FLOPs of the logits: a product with a D x V matrix per token."""
    return Counts(lm_head=2 * batch_size * sequence_length * spec.hidden_size * spec.vocab_size)


def mtp_forward_flops(spec: ModelSpec, sequence_length: int, batch_size: int) -> Counts:
    """Return FLOPs of the multi-token-prediction modules: projection, layer and shared head for each module."""
    run = (sequence_length, batch_size)
    total = Counts()
    for layer in spec.mtp_layers:
        total += forward_flops(layer, *run) + mtp_projection_flops(layer, *run) + head_flops(spec, *run)
    return total


def mtp_projection_flops(spec: LayerSpec, sequence_length: int, batch_size: int) -> Counts:
    """Return FLOPs of the projection of [embedding; hidden state] to the layer's input: 2D x D per token."""
    return Counts(mlp=2 * batch_size * sequence_length * 2 * spec.hidden_size * spec.hidden_size)


# --- A training step -------------------------------------------------------------------------------------------


def training_flops(spec: ModelSpec, setup: Setup) -> StepFlops:
    """Return FLOPs of one training step: each micro-batch costs the same.

    `setup` is resolved; `mtp_layers` are trained if its `mtp` is true. Logits are computed for the main model and for
    each multi-token-prediction layer (DeepSeek-V3, arXiv 2412.19437, eq. 23). A loss in chunks keeps no logits and
    computes them a second time in backward.
    """
    assert setup.sequence_length is not None and setup.mtp is not None and setup.micro_batches, "a resolved setup"
    run = (setup.sequence_length, setup.micro_batch_size)

    def how(layer: LayerSpec) -> tuple[Kernels, Recompute]:
        return setup.kernels, layer.recompute_in(setup.recompute)

    mtp_layers = spec.mtp_layers if setup.mtp else ()
    chunked = setup.loss_chunk is not None
    head = head_flops(spec, *run)
    heads = StepFlops(forward=head, backward=head * 2, recomputed=head * chunked) * (1 + len(mtp_layers))
    layers = (layer_step_flops(layer, *run, *how(layer)) * count for layer, count in spec.layer_groups())
    further = (mtp_layer_step_flops(layer, *run, *how(layer)) * count for layer, count in Counter(mtp_layers).items())
    return sum((*layers, *further), heads) * setup.micro_batches


def layer_step_flops(
    spec: LayerSpec,
    sequence_length: int,
    batch_size: int,
    kernels: Kernels,
    recompute: Recompute,
    *,
    predicts: bool = False,
) -> StepFlops:
    """Return FLOPs of one decoder layer in a training step; with `predicts`, of one after a projection.

    Each product C = A B of the forward pass leads to two products in the backward pass, dC B^T and A^T dC. This holds
    for projections (Kaplan et al. 2020, arXiv 2001.08361, §2.1) and for the two products of eager attention. Fused
    attention does not keep its scores and needs one more product, see `fused_core_backward`. Full recompute adds the
    layer's forward pass once more (Chen et al. 2016, arXiv 1604.06174); selective recompute adds that of the attention
    core (Korthikanti et al. 2022, arXiv 2205.05198, §5); by operation, all but the core and the products that are kept.
    An indexer has no backward pass.
    """
    run = (sequence_length, batch_size)
    spec = as_run(spec, kernels)
    forward = forward_flops(spec, *run)
    core = attention_core(spec.attention, *run).as_run
    core_backward = fused_core_backward(spec.attention, *run) if kernels == "fused" else 2 * core
    kept = kept_products_flops(spec, sequence_length * batch_size, predicts=predicts)
    if kernels == "eager":  # batched products, which are kept
        kept += kept_index_score_flops(spec, *run)
    if predicts:  # its projection is not counted here, and is the first product, which is kept
        kept -= mtp_projection_flops(spec, *run)
    recomputed = {
        "none": Counts(),
        "selective": Counts(attention=core),
        "per_op": forward - Counts(attention=core) - kept,
        "full": forward,
    }
    return StepFlops(
        forward=forward,
        backward=(forward - Counts(attention=core, indexer=forward.indexer)) * 2 + Counts(attention=core_backward),
        recomputed=recomputed[recompute],
    )


def mtp_layer_step_flops(
    spec: LayerSpec, sequence_length: int, batch_size: int, kernels: Kernels, recompute: Recompute
) -> StepFlops:
    """Return FLOPs of one multi-token-prediction layer without the head: a 2D x D projection and a decoder layer.

    Source: DeepSeek-V3, arXiv 2412.19437, eq. 21-22. Full recompute includes the projection; by operation its output is
    kept, and every second product after it.
    """
    projection = mtp_projection_flops(spec, sequence_length, batch_size)
    again = projection * (recompute == "full")
    layer = layer_step_flops(spec, sequence_length, batch_size, kernels, recompute, predicts=True)
    return layer + StepFlops(forward=projection, backward=projection * 2, recomputed=again)


def kept_index_score_flops(spec: LayerSpec, sequence_length: int, batch_size: int) -> Counts:
    """Return the FLOPs of the scores of a layer's indexer; formulas/per_op.py has their bytes."""
    attention = spec.attention
    if isinstance(attention, GroupedQueryAttentionSpec) or attention.indexer is None:
        return Counts()
    return Counts(indexer=index_scores_flops(attention.indexer, sequence_length, batch_size))


@singledispatch
def fused_core_backward(spec: AttentionSpec, sequence_length: int, batch_size: int) -> int:
    """Return FLOPs of the backward pass of a fused attention core: five products, where the forward pass has two.

    They are the scores, which were not kept, and the gradients of probabilities, values, queries and keys (Dao 2023,
    arXiv 2307.08691, §3.1.2): 2.5 times the forward pass if query and value heads have the same width. The number of
    pairs is that of the forward pass: S^2, S W with a window, the squares of the chunks, or S K with K chosen keys.
    """
    raise AssertionError(f"no formula of fused attention's backward pass for {type(spec).__name__}")


@fused_core_backward.register
def _(spec: GroupedQueryAttentionSpec, sequence_length: int, batch_size: int) -> int:
    """Each pair costs 2 head_dim in each of five products and H heads; sharing keys between heads saves no product."""
    pairs = visited_pairs(spec, sequence_length)
    return 2 * batch_size * spec.num_attention_heads * pairs * 5 * spec.head_dim


@fused_core_backward.register
def _(spec: MultiHeadLatentAttentionSpec, sequence_length: int, batch_size: int) -> int:
    """Scores and gradients of queries and keys have nope + rope channels; the other two products have v_head_dim."""
    channels = 3 * (spec.qk_nope_head_dim + spec.qk_rope_head_dim) + 2 * spec.v_head_dim
    pairs = sequence_length * chosen_keys(spec, sequence_length)
    return 2 * batch_size * spec.num_attention_heads * pairs * channels
