"""The shapes of all parameter tensors that are trained, from the spec alone: one function per spec type. Torch-free.

An optimiser's state and its temporary memory depend on the shapes, and where tensors are updated in turn, on their
order. The order is that of the modules' parameters: of a matrix, then its bias; of a block, as its data flows. The sum
of all numbers is that of formulas/parameters.py, less the parameters of indexers, which no gradient updates.

Legend: D hidden_size, F intermediate_size, V vocab_size, E experts. A linear layer's matrix is (out, in).
"""

from functools import singledispatch

from counting.formulas.parameters import latent_attention_matrices
from counting.recipes import TrainedTensor
from torch_models.spec import (
    ClampedMLPSpec,
    GatedMLPSpec,
    GroupedQueryAttentionSpec,
    LayerSpec,
    MixtureOfExpertsSpec,
    MLPSpec,
    ModelSpec,
    MultiHeadLatentAttentionSpec,
    RouterSpec,
    Spec,
)

Tensors = list[TrainedTensor]


@singledispatch
def tensors(spec: Spec) -> Tensors:
    """Return the parameter tensors of `spec` in the order in which an optimiser updates them."""
    raise AssertionError(f"no shapes of the tensors of {type(spec).__name__}")


def _vector(numel: int) -> TrainedTensor:
    return TrainedTensor((numel,), "vector")


def _linear(inputs: int, outputs: int, *, bias: bool = False) -> Tensors:
    matrix = TrainedTensor((outputs, inputs), "matrix")
    return [matrix, _vector(outputs)] if bias else [matrix]


def _norm(spec: LayerSpec | ModelSpec) -> Tensors:
    """A norm of the residual stream: a weight and, with LayerNorm, a bias."""
    weight = _vector(spec.hidden_size)
    return [weight, weight] if spec.norm_type == "layer_norm" else [weight]


@tensors.register
def _(spec: GroupedQueryAttentionSpec) -> Tensors:
    """Sinks; q, k, v (unless keys are the values) and o; norms of queries and keys, over one head or all heads."""
    queries, keys = (heads * spec.head_dim for heads in (spec.num_attention_heads, spec.num_key_value_heads))
    norms = {"head": [spec.head_dim, spec.head_dim], "width": [queries, keys], "l2": [], None: []}
    sinks = [spec.num_attention_heads] if spec.sinks else []
    projected = (queries, keys) if spec.keys_as_values else (queries, keys, keys)
    return [
        *map(_vector, sinks),
        *(each for width in projected for each in _linear(spec.hidden_size, width, bias=spec.qkv_bias)),
        *_linear(queries, spec.hidden_size, bias=spec.output_bias),
        *map(_vector, norms[spec.query_key_norm]),
    ]


@tensors.register
def _(spec: MultiHeadLatentAttentionSpec) -> Tensors:
    """The projections, with a norm after each of those to a latent (DeepSeek-V2, arXiv 2405.04434, eq. 9-19).

    A bias is part of the projections from and to the residual stream, except a direct query projection.
    """
    *to_queries, to_latent, from_latent, out = latent_attention_matrices(spec)
    found: Tensors = []
    if spec.q_lora_rank is not None:
        to_query_latent = to_queries.pop(0)
        found += [*_linear(*to_query_latent, bias=spec.bias), _vector(spec.q_lora_rank)]
    (queries,) = to_queries
    return [
        *found,
        *_linear(*queries),
        *_linear(*to_latent, bias=spec.bias),
        _vector(spec.kv_lora_rank),
        *_linear(*from_latent),
        *_linear(*out, bias=spec.bias),
    ]


@tensors.register
def _(spec: GatedMLPSpec) -> Tensors:
    """gate and up, F x D; down, D x F."""
    into = _linear(spec.hidden_size, spec.intermediate_size, bias=spec.bias)
    return [*into, *into, *_linear(spec.intermediate_size, spec.hidden_size, bias=spec.bias)]


@tensors.register
def _(spec: MLPSpec) -> Tensors:
    """up, F x D; down, D x F."""
    return [
        *_linear(spec.hidden_size, spec.intermediate_size, bias=spec.bias),
        *_linear(spec.intermediate_size, spec.hidden_size, bias=spec.bias),
    ]


@tensors.register
def _(spec: MixtureOfExpertsSpec) -> Tensors:
    """The router, E x D; the stacked experts; the shared experts; their gate, 1 x D.

    Experts with biases are stored (E, in, out), others (E, out, in); gate and up are one matrix.
    """
    experts, width, hidden = spec.router.num_experts, spec.expert.hidden_size, spec.expert.intermediate_size
    if isinstance(spec.expert, ClampedMLPSpec):
        stacks = [(width, 2 * hidden), (2 * hidden,), (hidden, width), (width,)]
    else:
        stacks = [(2 * hidden, width), (width, hidden)]
    return [
        *tensors(spec.router),
        *(TrainedTensor((experts, *of_one), "matrix" if len(of_one) == 2 else "vector", True) for of_one in stacks),
        *(tensors(spec.shared_experts) if spec.shared_experts else []),
        *(_linear(spec.router.hidden_size, 1) if spec.shared_expert_gate else []),
    ]


@tensors.register
def _(spec: RouterSpec) -> Tensors:
    """Learned scales of channels and of experts, if it has them; the matrix, E x D."""
    scales = [spec.hidden_size, spec.num_experts] if spec.learned_scales else []
    return [*map(_vector, scales), *_linear(spec.hidden_size, spec.num_experts, bias=spec.bias)]


@tensors.register
def _(spec: LayerSpec) -> Tensors:
    """Attention, then feed-forward, each with its norms before it, after it, or both.

    With a parallel MLP: the MLP and the norm after it, the router, and the experts between their norms.
    """
    norm = _norm(spec)
    before = norm if spec.norm_placement != "after" else []
    after = norm if spec.norm_placement != "before" else []
    feed_forward = tensors(spec.feed_forward)
    if spec.parallel_mlp is not None:
        assert isinstance(spec.feed_forward, MixtureOfExpertsSpec)
        router = tensors(spec.feed_forward.router)
        experts = feed_forward[len(router) :]
        feed_forward = [*tensors(spec.parallel_mlp), *norm, *router, *norm, *experts, *norm]
    return [*before, *tensors(spec.attention), *after, *before, *feed_forward, *after]


def tensors_before_layers(spec: ModelSpec) -> Tensors:
    """Return the embedding, V x D, and the learned table of P positions, P x D, if there is one."""
    rows = [spec.vocab_size, *([] if spec.learned_positions is None else [spec.learned_positions])]
    return [TrainedTensor((each, spec.hidden_size), "vocabulary") for each in rows]


def tensors_of_mtp(spec: ModelSpec) -> Tensors:
    """Return the multi-token-prediction layers, which are numbered on from those of the main model.

    Each has a decoder layer, norms of embedding and hidden state, a projection of 2 D to D, and a last norm
    (DeepSeek-V3, arXiv 2412.19437, eq. 21-23).
    """
    width = spec.hidden_size
    found: Tensors = []
    for layer in spec.mtp_layers:
        found += [*tensors(layer), _vector(width), _vector(width), *_linear(2 * width, width), _vector(width)]
    return found


def tensors_after_layers(spec: ModelSpec) -> Tensors:
    """Return final norm and head (V x D, unless it is tied)."""
    head = [] if spec.tie_word_embeddings else [TrainedTensor((spec.vocab_size, spec.hidden_size), "vocabulary")]
    return [*_norm(spec), *head]


def gradients_apart(layer: LayerSpec) -> int:
    """Return how many gradients of a layer's parameters are computed one after the other, where each is apart.

    That of a bias is computed with that of its matrix or norm; the biases of experts are added by an operation of their
    own.
    """
    norms = 4 if layer.norm_placement == "around" else 2
    return len(tensors(layer)) - _biases(layer) - norms * (layer.norm_type == "layer_norm")


def _biases(layer: LayerSpec) -> int:
    attention, feed_forward = layer.attention, layer.feed_forward
    if isinstance(attention, GroupedQueryAttentionSpec):
        found = (2 if attention.keys_as_values else 3) * attention.qkv_bias + attention.output_bias
    else:
        found = attention.bias * (2 + (attention.q_lora_rank is not None))
    if isinstance(feed_forward, GatedMLPSpec | MLPSpec):
        return found + (3 if isinstance(feed_forward, GatedMLPSpec) else 2) * feed_forward.bias
    shared = feed_forward.shared_experts
    found += feed_forward.router.bias
    return found + sum(3 * mlp.bias for mlp in (shared, layer.parallel_mlp) if mlp is not None)
