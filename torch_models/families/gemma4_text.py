"""Gemma-4, the text model: global and local layers with heads of their own sizes; experts beside a dense MLP.

There is no report; the source is transformers' `modeling_gemma4.py` (5.23) and the published config.json files.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import msgspec

from torch_models.errors import ConfigError, NotModelledError
from torch_models.fields.family_config import FamilyConfig
from torch_models.fields.known_fields import OF_IMAGES
from torch_models.fields.rope import rotary_spec
from torch_models.fields.shared import FULL, SLIDING, gated_mlp, window_by_layer
from torch_models.fields.stored_names import StoredName
from torch_models.spec import (
    Activation,
    Experts,
    GroupedQueryAttentionSpec,
    Heads,
    LayerSpec,
    MixtureOfExpertsSpec,
    ModelSpec,
    Positive,
    RouterSpec,
    SequenceLength,
    Vocabulary,
    Width,
)

DEFAULT_ACTIVATION: Activation = "gelu_pytorch_tanh"
GLOBAL_EVERY = 6  # by default every sixth layer is global
DEFAULT_ROPE = {
    FULL: {"rope_type": "proportional", "rope_theta": 1_000_000.0, "partial_rotary_factor": 0.25},
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
}
UNSCALED = 1  # queries and keys are normalised, and their scores are not divided


class OwnHeads(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An entry of `per_layer_config`: what a layer has that others have not."""

    head_dim: Width | None = None
    num_key_value_heads: Heads | None = None


class Config(FamilyConfig, frozen=True, kw_only=True):
    """The fields of a `Gemma4ForCausalLM` config; defaults as in transformers, but counts and sizes have none."""

    architecture: ClassVar[str | None] = "Gemma4ForCausalLM"
    stored_names: ClassVar[tuple[StoredName, ...]] = ()  # experts are published stacked

    num_key_value_heads: Heads
    head_dim: Width
    global_head_dim: Width = 512
    num_global_key_value_heads: Heads | None = None
    attention_k_eq_v: bool = False
    hidden_act: Activation = DEFAULT_ACTIVATION
    hidden_activation: Activation = DEFAULT_ACTIVATION  # transformers reads only this field
    tie_word_embeddings: bool = True
    sliding_window: SequenceLength = 512
    layer_types: list[str] | None = None
    final_logit_softcapping: Positive | None = None
    use_bidirectional_attention: Literal["all", "vision"] | None = None
    enable_moe_block: bool = False
    num_experts: Experts | None = None
    top_k_experts: Experts | None = None
    moe_intermediate_size: Width | None = None
    hidden_size_per_layer_input: int = 256
    vocab_size_per_layer_input: Vocabulary = 262_144
    num_kv_shared_layers: int = 0
    use_double_wide_mlp: bool = False
    per_layer_config: dict[str, OwnHeads] | None = None
    rope_parameters: dict[str, Any] = msgspec.field(default_factory=lambda: DEFAULT_ROPE)

    def passed_over(self) -> Iterator[tuple[str, str]]:
        """Yield fields of images or of a part that is off, and `hidden_act`, which transformers does not read."""
        yield "hidden_act", f"the activation is {self.hidden_activation}, by hidden_activation"
        yield "use_bidirectional_attention", OF_IMAGES
        yield "vocab_size_per_layer_input", "no layer has an embedding of its own"
        yield "use_double_wide_mlp", "of layers that share keys and values, and none does"
        if self.per_layer_config is not None:
            yield "global_head_dim", "the heads of each layer are those of per_layer_config"
            yield "num_global_key_value_heads", "the heads of each layer are those of per_layer_config"
        elif not self.attention_k_eq_v:
            yield "num_global_key_value_heads", "transformers reads it only with attention_k_eq_v"
        if not self.enable_moe_block:
            for field in ("num_experts", "top_k_experts", "moe_intermediate_size"):
                yield field, "enable_moe_block is off"


def model_spec(config: Config, name: str) -> ModelSpec:
    """Return the spec of a Gemma-4 config; by default every sixth layer is global, and the last one always is."""
    _check(config)
    own_heads = _own_heads(config)
    windows = window_by_layer(config, config.sliding_window, lambda index: (index + 1) % GLOBAL_EVERY != 0)
    windows[-1] = None
    mlp = gated_mlp(config, activation=config.hidden_activation)
    mixture = _mixture(config) if config.enable_moe_block else None

    def layer(index: int, window: int | None) -> LayerSpec:
        return LayerSpec(
            attention=_attention(config, window, *_heads(config, own_heads.get(index), is_global=window is None)),
            feed_forward=mixture or mlp,
            parallel_mlp=mlp if mixture else None,
            norm_eps=config.rms_norm_eps,
            norm_placement="around",
            output_scale=True,
        )

    return config.model_spec(
        name,
        [layer(index, window) for index, window in enumerate(windows)],
        embedding_scale=config.hidden_size**0.5,
        final_logit_softcap=config.final_logit_softcapping,
    )


def _own_heads(config: Config) -> dict[int, OwnHeads]:
    """Return the entries of `per_layer_config` by layer; transformers writes the numbers with zeros before them."""
    found: dict[int, OwnHeads] = {}
    for number, own in (config.per_layer_config or {}).items():
        if not (number.isascii() and number.isdecimal() and int(number) < config.num_hidden_layers):
            rule = f"must be the number of a layer, 0 to {config.num_hidden_layers - 1}"
            raise ConfigError("a key of per_layer_config", number, rule)
        if int(number) in found:
            raise ConfigError("a key of per_layer_config", number, f"layer {int(number)} is there twice")
        found[int(number)] = own
    return found


def _heads(config: Config, own: OwnHeads | None, *, is_global: bool) -> tuple[int, int]:
    """Return the number of key heads of a layer and the size of its heads.

    Global layers have a size of their own and, with `attention_k_eq_v`, a number of their own. transformers writes
    configs with these two in `per_layer_config`, by layer; then a layer that is not there has those of local layers.
    """
    heads, size = config.num_key_value_heads, config.head_dim
    if own is not None:
        return own.num_key_value_heads or heads, own.head_dim or size
    if config.per_layer_config is not None or not is_global:
        return heads, size
    own_heads = config.num_global_key_value_heads if config.attention_k_eq_v else None
    return own_heads or heads, config.global_head_dim


def _attention(config: Config, window: int | None, key_heads: int, head_dim: int) -> GroupedQueryAttentionSpec:
    """Return attention over keys that are normalised, as queries and values are, and not divided by anything."""
    is_global = window is None
    return GroupedQueryAttentionSpec(
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=key_heads,
        head_dim=head_dim,
        rotary=rotary_spec(
            config,
            head_dim,
            size="global_head_dim" if is_global else "head_dim",
            layer_type=FULL if is_global else SLIDING,
        ),
        qkv_bias=config.attention_bias,
        output_bias=config.attention_bias,
        query_key_norm="head",
        norm_eps=config.rms_norm_eps,
        value_norm=True,
        keys_as_values=is_global and config.attention_k_eq_v,
        window=window,
        scale_channels=UNSCALED,
    )


def _mixture(config: Config) -> MixtureOfExpertsSpec:
    for field in ("num_experts", "top_k_experts", "moe_intermediate_size"):
        if getattr(config, field) is None:
            raise ConfigError(field, None, "must be given, since enable_moe_block is on")
    assert config.num_experts and config.top_k_experts and config.moe_intermediate_size
    if config.top_k_experts > config.num_experts:
        rule = f"must be at most num_experts ({config.num_experts})"
        raise ConfigError("top_k_experts", config.top_k_experts, rule)
    router = RouterSpec(
        hidden_size=config.hidden_size,
        num_experts=config.num_experts,
        top_k=config.top_k_experts,
        scoring="softmax",
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=1.0,
        correction_bias=False,
        learned_scales=True,
        norm_eps=config.rms_norm_eps,
    )
    expert = gated_mlp(config, config.moe_intermediate_size, activation=config.hidden_activation)
    return MixtureOfExpertsSpec(router=router, expert=expert, shared_experts=None)


def _check(config: Config) -> None:
    """Raise `ConfigError` for what has no module here; `NotModelledError` if transformers' class can be counted."""
    if config.use_bidirectional_attention == "all":
        rule = "lets a token see those after it, and only decoders are modelled"
        raise ConfigError("use_bidirectional_attention", "all", rule)
    for field, what in (
        ("hidden_size_per_layer_input", "embeddings of every layer"),
        ("num_kv_shared_layers", "layers that use the keys and values of others"),
    ):
        if value := getattr(config, field):
            raise NotModelledError(field, value, f"{what} have no module here; the counts come from transformers")
