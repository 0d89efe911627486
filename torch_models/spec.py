"""Model specs: frozen data with every size that parameters, FLOPs and bytes depend on.

Torch-free. A family (families/) reads a config.json into a `ModelSpec`. Modules are built from it, and closed-form
formulas read it instead of the modules. All sizes are element counts. A spec's constructor checks the rules that join
several fields; it raises a `ConfigError` that names the field as Hugging Face's config.json does. Ranges of single
fields are checked when a config is read.
"""

from collections.abc import Iterable
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from torch_models.errors import ArgumentError, ConfigError
from torch_models.rope_scaling import RopeScaling

# Upper limits, far above any published transformer: they keep the bytes of one tensor within 64 bits.
MAX_WIDTH = 2**20  # hidden_size, intermediate_size, a projection's output
MAX_HEADS = 2**12
MAX_EXPERTS = 2**16
MAX_LAYERS = 100_000
MAX_VOCABULARY = 2**24
MAX_SEQUENCE_LENGTH = 2**24

Width = Annotated[int, Meta(ge=1, le=MAX_WIDTH)]
Heads = Annotated[int, Meta(ge=1, le=MAX_HEADS)]
Layers = Annotated[int, Meta(ge=1, le=MAX_LAYERS)]
Experts = Annotated[int, Meta(ge=1, le=MAX_EXPERTS)]
Vocabulary = Annotated[int, Meta(ge=1, le=MAX_VOCABULARY)]
SequenceLength = Annotated[int, Meta(ge=1, le=MAX_SEQUENCE_LENGTH)]
Epsilon = Annotated[float, Meta(gt=0, le=1)]
Positive = Annotated[float, Meta(gt=0, le=1e12)]
Share = Annotated[float, Meta(gt=0, le=1)]
Theta = Annotated[float, Meta(ge=2, le=1e12)]

InitializerRange = Annotated[float, Meta(ge=0, le=1e12)]
DEFAULT_INITIALIZER_RANGE = 0.02  # of every family's class in transformers 5

Kernels = Literal["fused", "eager"]
# The part of a layer's forward pass that backward computes again; of a model, that of every layer, or a number N: every
# N-th layer is computed again as a whole, and the others not at all.
Recompute = Literal["none", "selective", "per_op", "full"]
ModelRecompute = Recompute | int
Activation = Literal["silu", "gelu", "gelu_pytorch_tanh"]
NormPlacement = Literal["before", "after", "around"]  # of a block, within its residual connection


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all specs: immutable, keyword-only, hashable; two specs are equal if all their fields are."""


class RotarySpec(Spec, frozen=True, kw_only=True):
    """Rotary position embedding over the `dim` rotated channels of each head; it has no parameters."""

    dim: int
    theta: float
    scaling: RopeScaling | None = None
    interleaved: bool = False  # pairs (0, 1), (2, 3), … as DeepSeek stores them, instead of (0, dim/2), …
    scores_scaled: bool = False  # DeepSeek's YaRN also scales the attention scores, by mscale_all_dim

    def __post_init__(self) -> None:
        assert self.dim > 0 and self.dim % 2 == 0


class GroupedQueryAttentionSpec(Spec, frozen=True, kw_only=True, tag="grouped_query_attention"):
    """Multi-head attention whose query heads share key/value heads in equal groups (Ainslie et al. 2023).

    The first `rotary.dim` channels of each head are rotated. `query_key_norm` normalises queries and keys before the
    rotation: each ``head`` separately (Qwen3), or all heads of a token together, over the full ``width`` (OLMo-2).
    """

    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rotary: RotarySpec
    qkv_bias: bool = False
    output_bias: bool = False
    query_key_norm: Literal["head", "width"] | None = None
    norm_eps: float = 1e-6  # of the query and key norms
    window: int | None = None  # a position attends to itself and to the window - 1 positions before it
    logit_softcap: float | None = None  # scores become cap * tanh(scores / cap)
    sinks: bool = False  # one learned score per head, which enters the softmax but has no value vector
    scale_channels: int | None = None  # scores are divided by the square root of this instead of head_dim

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                "num_attention_heads",
                self.num_attention_heads,
                f"num_attention_heads ({self.num_attention_heads}) must be divisible by "
                f"num_key_value_heads ({self.num_key_value_heads})",
            )
        check_width("num_attention_heads * head_dim", self.num_attention_heads * self.head_dim)
        assert self.rotary.dim <= self.head_dim


class MultiHeadLatentAttentionSpec(Spec, frozen=True, kw_only=True, tag="multi_head_latent_attention"):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, §2.1).

    Keys and values are expanded from one latent of width `kv_lora_rank` per token. Queries are expanded from a latent
    of width `q_lora_rank`, or projected directly from the hidden state if that is None. The key of a head consists of
    `qk_nope_head_dim` channels of that head and `qk_rope_head_dim` rotated channels that all heads share.
    """

    hidden_size: int
    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rotary: RotarySpec
    bias: bool = False  # of the projections from and to the hidden state

    def __post_init__(self) -> None:
        check_width(
            "num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim)", self.num_attention_heads * self.qk_head_dim
        )
        check_width(
            "num_attention_heads * (qk_nope_head_dim + v_head_dim)",
            self.num_attention_heads * (self.qk_nope_head_dim + self.v_head_dim),
        )
        assert self.rotary.dim == self.qk_rope_head_dim

    @property
    def qk_head_dim(self) -> int:
        """Channels of one query or key head."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim


AttentionSpec = GroupedQueryAttentionSpec | MultiHeadLatentAttentionSpec


class GatedMLPSpec(Spec, frozen=True, kw_only=True, tag="gated_mlp"):
    """down(activation(gate(x)) * up(x)); SwiGLU if the activation is silu (Shazeer 2020)."""

    hidden_size: int
    intermediate_size: int
    activation: Activation = "silu"
    bias: bool = False


class ClampedMLPSpec(Spec, frozen=True, kw_only=True, tag="clamped_mlp"):
    """gpt-oss's expert: (up + 1) * gate * sigmoid(alpha gate), both clamped to `limit`, with biases.

    Gate and up alternate along the columns of one matrix, stored (in, out).
    """

    hidden_size: int
    intermediate_size: int
    alpha: float
    limit: float


class RouterSpec(Spec, frozen=True, kw_only=True):
    """Selects `top_k` of `num_experts` for each token and weighs them (DeepSeek-V3, arXiv 2412.19437, §2.1.2).

    With `n_group` groups, only experts of the `topk_group` best groups are eligible. Groups are ranked by the sum of
    the scores of their two best experts (DeepSeek-V3), or by the score of their best expert (DeepSeek-V2). The
    `correction_bias` changes which experts are selected but not their weights; the optimiser does not update it.
    """

    hidden_size: int
    num_experts: int
    top_k: int
    scoring: Literal["sigmoid", "softmax"] = "sigmoid"
    bias: bool = False
    checkpoint_name: Literal["gate", "router"] = "gate"
    group_rank_experts: Literal[1, 2] = 2
    n_group: int
    topk_group: int
    norm_topk_prob: bool
    routed_scaling_factor: float
    correction_bias: bool

    def __post_init__(self) -> None:
        def require(holds: bool, field: str, value: int, rule: str) -> None:
            if not holds:
                raise ConfigError(field, value, rule)

        experts, groups = self.num_experts, self.n_group
        require(
            self.top_k <= experts,
            "num_experts_per_tok",
            self.top_k,
            f"must be at most the number of experts ({experts})",
        )
        require(experts % groups == 0, "n_group", groups, f"must divide the number of experts ({experts})")
        require(self.topk_group <= groups, "topk_group", self.topk_group, f"must be at most n_group ({groups})")
        require(
            groups == 1 or experts // groups >= self.group_rank_experts,
            "n_group",
            groups,
            f"a group ranks by its two best experts, but a group has {experts // groups}",
        )
        eligible = self.topk_group * (experts // groups)
        require(
            self.top_k <= eligible,
            "num_experts_per_tok",
            self.top_k,
            f"must be at most the {eligible} experts of topk_group ({self.topk_group}) groups",
        )


class MixtureOfExpertsSpec(Spec, frozen=True, kw_only=True, tag="mixture_of_experts"):
    """Routed experts, of which each token uses `router.top_k`, and shared experts that every token uses."""

    router: RouterSpec
    expert: GatedMLPSpec | ClampedMLPSpec
    shared_experts: GatedMLPSpec | None  # all shared experts, computed as one wide MLP

    def __post_init__(self) -> None:
        for field, width in (
            ("hidden_size", self.expert.hidden_size),
            ("intermediate_size of an expert", self.expert.intermediate_size),
        ):
            if width % 8:
                raise ConfigError(field, width, "must be a multiple of 8: grouped matrix products need 16-byte rows")
        if isinstance(self.expert, GatedMLPSpec) and self.expert.bias:
            raise ConfigError("mlp_bias", True, "routed experts have no biases")


FeedForwardSpec = GatedMLPSpec | MixtureOfExpertsSpec


class LayerSpec(Spec, frozen=True, kw_only=True):
    """One decoder layer: attention, then feed-forward, each with its norms and a residual connection.

    `norm_placement` is ``before`` for x + block(norm(x)), ``after`` for x + norm(block(x)), ``around`` for
    x + norm(block(norm(x))).
    """

    attention: AttentionSpec
    feed_forward: FeedForwardSpec
    norm_eps: float
    norm_placement: NormPlacement = "before"
    norm_unit_offset: bool = False  # norms multiply by 1 + weight
    recompute: Recompute | None = None  # in training; None: as the model's other layers, see `with_recompute`

    @property
    def kind(self) -> str:
        """``dense`` or ``moe``, with ``_window_<size>`` appended if the attention has a window.

        Where only some layers are computed again in training, ``_recomputed`` stands after their kind.
        """
        kind = "moe" if isinstance(self.feed_forward, MixtureOfExpertsSpec) else "dense"
        window = "" if self.window is None else f"_window_{self.window}"
        return f"{kind}{window}{'_recomputed' if self.recompute == 'full' else ''}"

    def recompute_in(self, model: ModelRecompute) -> Recompute:
        """What is recomputed of this layer in a model that is trained with `model`: of a number, what the layer says.

        A layer of a model that is trained with a number must come from `with_recompute`.
        """
        if self.recompute is not None:
            return self.recompute
        assert not isinstance(model, int), "a layer that is marked by its place in the model"
        return model

    @property
    def window(self) -> int | None:
        """Positions that a token attends to, itself included; None for all positions up to it."""
        return self.attention.window if isinstance(self.attention, GroupedQueryAttentionSpec) else None

    @property
    def shares_key_value_heads(self) -> bool:
        """Whether several query heads have one key and value head."""
        attention = self.attention
        return (
            isinstance(attention, GroupedQueryAttentionSpec)
            and attention.num_attention_heads > attention.num_key_value_heads
        )

    @property
    def hidden_size(self) -> int:
        """The width of the residual stream."""
        return self.attention.hidden_size


class LayerRun(Spec, frozen=True, kw_only=True):
    """`count` consecutive equal layers."""

    layer: LayerSpec
    count: int


def runs_of(layers: Iterable[LayerSpec]) -> tuple[LayerRun, ...]:
    """Return `layers` in their order, with equal neighbours joined into one run."""
    runs: list[tuple[LayerSpec, int]] = []
    for layer in layers:
        if runs and (layer is runs[-1][0] or layer == runs[-1][0]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((layer, 1))
    return tuple(LayerRun(layer=layer, count=count) for layer, count in runs)


class ModelSpec(Spec, frozen=True, kw_only=True):
    """A decoder-only language model: embedding, layers, final norm, head.

    `mtp_layers` are the decoder layers of the multi-token-prediction modules (DeepSeek-V3, §2.2), which are not part of
    the main model. Each module joins the hidden state with the next token's embedding and runs one decoder layer; it
    uses the embedding and the head of the main model.
    """

    name: str
    model_type: str
    vocab_size: int
    hidden_size: int
    layer_runs: tuple[LayerRun, ...]  # in the model's order; `runs_of` makes them from single layers
    norm_eps: float
    tie_word_embeddings: bool
    sequence_length: int | None  # the training length in tokens, None if the config contains none
    sequence_length_source: str | None  # the config field that contains it
    mtp_layers: tuple[LayerSpec, ...] = ()
    norm_unit_offset: bool = False
    embedding_scale: float = 1.0
    final_logit_softcap: float | None = None
    initializer_range: float = DEFAULT_INITIALIZER_RANGE  # the standard deviation of weights before training
    defaulted_fields: tuple[str, ...] = ()  # "field = value" for each field that took the family's default
    folder: str | None = None  # the folder of the config, if the config was given as one; it may have weights
    passed_over_fields: tuple[str, ...] = ()  # "field = value (reason)" for each field that has no part in the model
    ignored_fields: tuple[str, ...] = ()  # "field = value" for each field that the caller named as without influence
    config_json: str | None = None  # the config's fields with the defaults taken, to be saved; None if made by hand

    def __post_init__(self) -> None:
        assert self.layer_runs and all(run.layer.hidden_size == self.hidden_size for run in self.layer_runs)

    @property
    def num_layers(self) -> int:
        """Number of layers of the main model."""
        return sum(run.count for run in self.layer_runs)

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """Every layer of the main model, in order, without joining equal ones."""
        return tuple(run.layer for run in self.layer_runs for _ in range(run.count))

    def layer_groups(self) -> tuple[tuple[LayerSpec, int], ...]:
        """The distinct layers, each with the number of times it occurs, in order of first appearance."""
        counts: dict[LayerSpec, int] = {}
        for run in self.layer_runs:
            counts[run.layer] = counts.get(run.layer, 0) + run.count
        return tuple(counts.items())


def check_width(field: str, value: int) -> None:
    """Raise `ConfigError` if `value`, a product of fields that are each in range, exceeds `MAX_WIDTH`."""
    if value > MAX_WIDTH:
        raise ConfigError(field, value, f"must be at most {MAX_WIDTH}")


def check_kernels(kernels: str) -> None:
    """Raise `ArgumentError` if `kernels` is not a kernel profile."""
    if kernels not in get_args(Kernels):
        raise ArgumentError("kernels", kernels, f"must be one of {', '.join(get_args(Kernels))}")
