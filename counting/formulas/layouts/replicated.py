"""Parameters that every rank of tensor parallelism has whole, in closed form.

Divided are matrices with heads, intermediate channels or words, and what belongs to one of these: biases before heads
and channels, sinks, norms over the width of all heads. So t times a rank's parameters are those of the undivided model
and (t - 1) times the replicated ones:

    t x rank_parameters = parameters + (t - 1) x replicated_parameters

Example: Llama-3-8B, tp 8: two norms of 4,096 in each of 32 layers and the final one: 65 x 4,096 = 266,240 numbers. A
rank has (8,030,261,248 + 7 x 266,240) / 8 = 1,004,015,616.
"""

from functools import singledispatch

from counting.formulas.layouts.groups import mtp_shapes
from counting.formulas.layouts.sharding import Shape, numbers
from counting.formulas.parameters import number_of_stream_norms
from counting.setup import Setup
from torch_models.spec import (
    ClampedMLPSpec,
    GatedMLPSpec,
    GroupedQueryAttentionSpec,
    LayerSpec,
    MixtureOfExpertsSpec,
    MLPSpec,
    ModelSpec,
    MultiHeadLatentAttentionSpec,
    Spec,
)


def replicated_parameters(spec: ModelSpec, setup: Setup) -> int:
    """Return how many parameters every rank of tp has whole, with those of multi-token prediction if it is trained."""
    width = spec.hidden_size
    found = sum(map(numbers, final_norm(spec))) + (spec.learned_positions or 0) * width
    found += sum(_total(layer) * count for layer, count in spec.layer_groups())
    for layer in spec.mtp_layers if setup.mtp else ():
        found += _total(layer) + sum(map(numbers, mtp_shapes(width)))
    return found


def _total(layer: LayerSpec) -> int:
    whole = [*norms_of_stream(layer), *used_apart(layer.attention), *used_apart(layer.feed_forward)]
    return sum(map(numbers, whole)) + biases_of_sums(layer.attention) + biases_of_sums(layer.feed_forward)


def norms_of_stream(layer: LayerSpec) -> list[Shape]:
    """Return the shapes of a layer's norms of the residual stream: before or after each of its blocks, or both.

    LayerNorm has a weight and a bias.
    With sequence parallelism each rank uses them on its own positions, so that their gradients are terms of a sum too.
    """
    return _norm(layer) * number_of_stream_norms(layer)


def final_norm(spec: ModelSpec) -> list[Shape]:
    """Return the shapes of the norm after the last layer, of which the same is true."""
    return _norm(spec)


def _norm(spec: LayerSpec | ModelSpec) -> list[Shape]:
    return [(spec.hidden_size,)] * (2 if spec.norm_type == "layer_norm" else 1)


@singledispatch
def used_apart(spec: Spec) -> list[Shape]:
    """Return the shapes of the parameters in a block that each rank uses whole, for its own heads or channels.

    Their gradient on a rank is a term of the sum over the ranks.
    """
    raise AssertionError(f"no replicated parameters of {type(spec).__name__}")


@used_apart.register
def _(spec: GroupedQueryAttentionSpec) -> list[Shape]:
    """Norms of the queries and keys of each head."""
    return [(spec.head_dim,), (spec.head_dim,)] if spec.query_key_norm == "head" else []


@used_apart.register
def _(spec: MultiHeadLatentAttentionSpec) -> list[Shape]:
    """The projections to latents with their biases, and the latents' norms."""
    found: list[Shape] = []
    keys = spec.kv_lora_rank + spec.qk_rope_head_dim
    for latent, normed in ((spec.q_lora_rank, spec.q_lora_rank), (keys, spec.kv_lora_rank)):
        if latent is not None and normed is not None:
            found += [(latent, spec.hidden_size), (normed,), *([(latent,)] if spec.bias else [])]
    return found


@used_apart.register
def _(spec: GatedMLPSpec | MLPSpec | ClampedMLPSpec) -> list[Shape]:
    """None: every matrix has intermediate channels."""
    return []


@used_apart.register
def _(spec: MixtureOfExpertsSpec) -> list[Shape]:
    """The router, its bias and its learned scales, and the gate of the shared experts."""
    router = spec.router
    bias: list[Shape] = [(router.num_experts,)] if router.bias else []
    scales: list[Shape] = [(router.hidden_size,), (router.num_experts,)] if router.learned_scales else []
    gate: list[Shape] = [(1, router.hidden_size)] if spec.shared_expert_gate else []
    return [(router.num_experts, router.hidden_size), *bias, *scales, *gate]


@singledispatch
def biases_of_sums(spec: Spec) -> int:
    """Return how many numbers the biases of sums over the ranks have: of each, every rank adds an equal share.

    Their gradient is equal on all ranks.
    """
    raise AssertionError(f"no biases of {type(spec).__name__}")


@biases_of_sums.register
def _(spec: GroupedQueryAttentionSpec) -> int:
    return spec.output_bias * spec.hidden_size


@biases_of_sums.register
def _(spec: MultiHeadLatentAttentionSpec) -> int:
    return spec.bias * spec.hidden_size


@biases_of_sums.register
def _(spec: GatedMLPSpec | MLPSpec) -> int:
    return spec.bias * spec.hidden_size


@biases_of_sums.register
def _(spec: ClampedMLPSpec) -> int:
    return spec.hidden_size


@biases_of_sums.register
def _(spec: MixtureOfExpertsSpec) -> int:
    shared = biases_of_sums(spec.shared_experts) if spec.shared_experts else 0
    return spec.router.num_experts * biases_of_sums(spec.expert) + shared
