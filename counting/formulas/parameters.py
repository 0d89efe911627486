"""Parameters in closed form: one formula per spec type, from the spec alone.

Torch-free; no module is read, so the numbers can be compared with the parameters of the modules.

Legend: D hidden_size, F intermediate_size, V vocab_size, E experts, K experts per token, H query heads, G key/value
heads.
"""

from functools import singledispatch

from msgspec import structs

from counting.counts import Counts
from torch_models.spec import (
    ClampedMLPSpec,
    GatedMLPSpec,
    GroupedQueryAttentionSpec,
    IndexerSpec,
    LayerSpec,
    MixtureOfExpertsSpec,
    MLPSpec,
    ModelSpec,
    MultiHeadLatentAttentionSpec,
    RouterSpec,
    Spec,
)

NORMS_OF_BRANCHES = 3  # after a parallel MLP, and before and after the experts


@singledispatch
def parameters(spec: Spec) -> Counts:
    """Return the number of trainable parameters of `spec` by component."""
    raise AssertionError(f"no parameter formula for {type(spec).__name__}")


@singledispatch
def linear_weights(spec: Spec) -> int:
    """Return the number of weights in the matrices of attention and feed-forward, without biases and routers.

    DeepSeek-V3's checkpoint stores these weights in fp8, but not embedding, head, router, norms and the projection of
    multi-token prediction. arXiv 2412.19437, §3.3.1, names all of these but the last; for the last the source is the
    number of scales in the checkpoint.
    """
    raise AssertionError(f"no formula of linear weights for {type(spec).__name__}")


# --- Attention -------------------------------------------------------------------------------------------------


@linear_weights.register
def _(spec: GroupedQueryAttentionSpec) -> int:
    """q and o: D x H head_dim each; k and v: D x G head_dim each (Ainslie et al. 2023, arXiv 2305.13245).

    Where keys are the values too, there is no v (Gemma-4).
    """
    heads = 2 * spec.num_attention_heads + (1 if spec.keys_as_values else 2) * spec.num_key_value_heads
    return spec.hidden_size * heads * spec.head_dim


@parameters.register
def _(spec: GroupedQueryAttentionSpec) -> Counts:
    """The projections and, if the spec has them, biases, norms and sinks.

    Norms of queries and keys are as wide as one head (Qwen3, arXiv 2505.09388, §2) or as all heads together (OLMo-2,
    arXiv 2501.00656, §3.3); Llama-4's have no weights, nor has the norm of values. A sink is one number per query head
    (gpt-oss, arXiv 2508.10925).
    """
    query_width = spec.num_attention_heads * spec.head_dim
    key_width = spec.num_key_value_heads * spec.head_dim
    projected = query_width + (1 if spec.keys_as_values else 2) * key_width
    biases = spec.qkv_bias * projected + spec.output_bias * spec.hidden_size
    norms = {"head": 2 * spec.head_dim, "width": query_width + key_width, "l2": 0, None: 0}
    sinks = spec.sinks * spec.num_attention_heads
    return Counts(attention=linear_weights(spec) + biases + sinks, norm=norms[spec.query_key_norm])


def latent_attention_matrices(spec: MultiHeadLatentAttentionSpec) -> list[tuple[int, int]]:
    """Return (in, out) of each projection (DeepSeek-V2, arXiv 2405.04434, eq. 9-15, 19); W_DKV and W_KR are joined."""
    heads = spec.num_attention_heads
    queries = heads * (spec.qk_nope_head_dim + spec.qk_rope_head_dim)
    if spec.q_lora_rank is None:
        query_matrices = [(spec.hidden_size, queries)]
    else:
        query_matrices = [(spec.hidden_size, spec.q_lora_rank), (spec.q_lora_rank, queries)]
    return [
        *query_matrices,
        (spec.hidden_size, spec.kv_lora_rank + spec.qk_rope_head_dim),
        (spec.kv_lora_rank, heads * (spec.qk_nope_head_dim + spec.v_head_dim)),
        (heads * spec.v_head_dim, spec.hidden_size),
    ]


@linear_weights.register
def _(spec: MultiHeadLatentAttentionSpec) -> int:
    """Weights of all projections."""
    return sum(rows * columns for rows, columns in latent_attention_matrices(spec))


def indexer_matrices(spec: MultiHeadLatentAttentionSpec, indexer: IndexerSpec) -> list[tuple[int, int]]:
    """Return (in, out) of an indexer's projections: queries, key, weights of heads (arXiv 2512.02556, eq. 1)."""
    assert spec.q_lora_rank is not None
    return [
        (spec.q_lora_rank, indexer.num_heads * indexer.head_dim),
        (spec.hidden_size, indexer.head_dim),
        (spec.hidden_size, indexer.num_heads),
    ]


@parameters.register
def _(spec: MultiHeadLatentAttentionSpec) -> Counts:
    """The projections, and the norms of the two latents (DeepSeek-V3, arXiv 2412.19437, §4.2); the indexer, if any.

    The norm of the indexer's keys is a LayerNorm, with a weight and a bias.
    """
    biases = 0
    if spec.bias:  # of projections from and to the residual stream, except a direct query projection
        biases = (spec.q_lora_rank or 0) + spec.kv_lora_rank + spec.qk_rope_head_dim + spec.hidden_size
    norm, indexer = (spec.q_lora_rank or 0) + spec.kv_lora_rank, 0
    if spec.indexer is not None:
        indexer = sum(rows * columns for rows, columns in indexer_matrices(spec, spec.indexer))
        norm += 2 * spec.indexer.head_dim
    return Counts(attention=linear_weights(spec) + biases, indexer=indexer, norm=norm)


def frozen_parameters(spec: LayerSpec) -> int:
    """Return the number of a layer's parameters that the loss does not train: those of an indexer, with its norm.

    A choice of keys has no gradient. DeepSeek-V3.2 trains the indexer by a loss of its own (arXiv 2512.02556, §2.1.1),
    which is no part of the step here.
    """
    attention = spec.attention
    if not isinstance(attention, MultiHeadLatentAttentionSpec) or attention.indexer is None:
        return 0
    without = parameters(structs.replace(attention, indexer=None))
    return parameters(attention).total - without.total


# --- Feed-forward ----------------------------------------------------------------------------------------------


@linear_weights.register
def _(spec: GatedMLPSpec | ClampedMLPSpec) -> int:
    """gate, up and down: three D x F matrices (Shazeer 2020, arXiv 2002.05202, eq. 6)."""
    return 3 * spec.hidden_size * spec.intermediate_size


@parameters.register
def _(spec: GatedMLPSpec) -> Counts:
    """The matrices and, if the spec has them, one bias per matrix."""
    biases = spec.bias * (2 * spec.intermediate_size + spec.hidden_size)
    return Counts(mlp=linear_weights(spec) + biases)


@linear_weights.register
def _(spec: MLPSpec) -> int:
    """up and down: two D x F matrices (Vaswani et al. 2017, arXiv 1706.03762, eq. 2)."""
    return 2 * spec.hidden_size * spec.intermediate_size


@parameters.register
def _(spec: MLPSpec) -> Counts:
    """The matrices and, if the spec has them, one bias per matrix."""
    return Counts(mlp=linear_weights(spec) + spec.bias * (spec.intermediate_size + spec.hidden_size))


@parameters.register
def _(spec: ClampedMLPSpec) -> Counts:
    """gate, up and down, and their biases of 2 F + D numbers (gpt-oss, arXiv 2508.10925)."""
    return Counts(mlp=linear_weights(spec) + 2 * spec.intermediate_size + spec.hidden_size)


@linear_weights.register
def _(spec: MixtureOfExpertsSpec) -> int:
    """Weights of E routed experts and of the shared experts."""
    shared = linear_weights(spec.shared_experts) if spec.shared_experts else 0
    return spec.router.num_experts * linear_weights(spec.expert) + shared


@parameters.register
def _(spec: MixtureOfExpertsSpec) -> Counts:
    """E routed experts, the shared experts, and the router of D x E (DeepSeek-V3, arXiv 2412.19437, eq. 12-15).

    A gate of the shared experts is a vector of D numbers, counted with them (Qwen1.5-MoE, `shared_expert_gate`).
    The router's bias adds E numbers if the spec has one, learned scales D + E (Gemma-4). The correction bias of eq. 16
    is a buffer and not counted: no gradient updates it.
    """
    router = spec.router
    shared = parameters(spec.shared_experts).total if spec.shared_experts else 0
    return Counts(
        router=(router.hidden_size + router.bias) * router.num_experts + router_scales(router),
        routed_experts=router.num_experts * parameters(spec.expert).total,
        shared_experts=shared + spec.shared_expert_gate * router.hidden_size,
    )


def router_scales(spec: RouterSpec) -> int:
    """Return how many learned scales the router has: one of each channel and of each expert, or none."""
    return spec.learned_scales * (spec.hidden_size + spec.num_experts)


def router_correction_bias(spec: LayerSpec) -> int:
    """Return the size of the layer's correction bias: one fp32 number per expert, not updated by the optimiser."""
    if not isinstance(spec.feed_forward, MixtureOfExpertsSpec):
        return 0
    return spec.feed_forward.router.correction_bias * spec.feed_forward.router.num_experts


def inactive_parameters(spec: LayerSpec) -> int:
    """Return the number of parameters of the routed experts that one token does not use."""
    if not isinstance(spec.feed_forward, MixtureOfExpertsSpec):
        return 0
    router = spec.feed_forward.router
    return (router.num_experts - router.top_k) * parameters(spec.feed_forward.expert).total


# --- Layers and models -----------------------------------------------------------------------------------------


@linear_weights.register
def _(spec: LayerSpec) -> int:
    """Weights of attention and feed-forward, and of a parallel MLP."""
    parallel = linear_weights(spec.parallel_mlp) if spec.parallel_mlp else 0
    return linear_weights(spec.attention) + linear_weights(spec.feed_forward) + parallel


@parameters.register
def _(spec: LayerSpec) -> Counts:
    """Attention, feed-forward, and one norm for each of them, or two with `norm_placement` ``around``.

    A parallel MLP comes with three norms more: one after it, and one before and one after the experts (Gemma-4).
    """
    total = parameters(spec.attention) + parameters(spec.feed_forward)
    if spec.parallel_mlp is not None:
        total += parameters(spec.parallel_mlp)
    return total + Counts(norm=number_of_stream_norms(spec) * norm_parameters(spec))


def number_of_stream_norms(spec: LayerSpec) -> int:
    """Return how many norms as wide as the residual stream the layer has."""
    around_blocks = 4 if spec.norm_placement == "around" else 2
    return around_blocks + (0 if spec.parallel_mlp is None else NORMS_OF_BRANCHES)


def norm_parameters(spec: LayerSpec | ModelSpec) -> int:
    """Return the numbers of one norm of the residual stream: a weight, and with LayerNorm a bias, of D numbers each.

    Sources: Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4; Ba et al. 2016, arXiv 1607.06450, eq. 4.
    """
    return spec.hidden_size * (2 if spec.norm_type == "layer_norm" else 1)


@parameters.register
def _(spec: ModelSpec) -> Counts:
    """All layers, and the parameters outside them."""
    layers = sum((parameters(layer) * count for layer, count in spec.layer_groups()), Counts())
    return layers + outside_parameters(spec)


def outside_parameters(spec: ModelSpec) -> Counts:
    """Return parameters of embedding, table of positions, final norm and head.

    Embedding and head have V x D; a tied head counts once. A learned table of P positions has P x D (GPT-2).
    """
    matrix = spec.vocab_size * spec.hidden_size
    head = 0 if spec.tie_word_embeddings else matrix
    positions = (spec.learned_positions or 0) * spec.hidden_size
    return Counts(word_embedding=matrix, positional_embedding=positions, norm=norm_parameters(spec), lm_head=head)


def mtp_parameters(spec: ModelSpec) -> Counts:
    """Return parameters of the multi-token-prediction modules, without the embedding and head of the main model.

    Each module has a decoder layer, a 2D x D projection of hidden state and next embedding, a norm for each of these
    two (DeepSeek-V3, arXiv 2412.19437, eq. 21-23), and a norm before the head, as in the published checkpoint. The
    projection is counted under `mlp`.
    """
    total = Counts()
    for layer in spec.mtp_layers:
        projection = 2 * spec.hidden_size * spec.hidden_size
        total += parameters(layer) + Counts(mlp=projection, norm=3 * spec.hidden_size)
    return total
