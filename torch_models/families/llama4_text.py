"""Llama-4's text decoder (Llama 4 Scout and Maverick, April 2025, as transformers' modules compute it).

Most layers rotate queries and keys and attend within chunks. The others, every fourth, encode no positions, attend to
all that came before, and may sharpen their softmax with the position. Mixtures of experts have a sigmoid router, whose
weight multiplies an expert's input, and one shared expert; Maverick has them in every second layer.
"""

from collections.abc import Iterator
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from torch_models.errors import ConfigError
from torch_models.fields.conversion import MISSING
from torch_models.fields.family_config import FamilyConfig
from torch_models.fields.shared import FULL, gated_mlp, grouped_query_attention
from torch_models.fields.stored_names import StoredName
from torch_models.spec import (
    Epsilon,
    Experts,
    GroupedQueryAttentionSpec,
    Heads,
    Layers,
    LayerSpec,
    MixtureOfExpertsSpec,
    ModelSpec,
    RouterSpec,
    SequenceLength,
    TemperatureSpec,
    Width,
)

CHUNKED = "chunked_attention"


class Config(FamilyConfig, frozen=True, kw_only=True):
    """The fields of a `Llama4ForCausalLM` config; head and expert counts and the head size have no default.

    `no_rope_layers` has a 1 for each layer that rotates, and a 0 for each that does not.
    """

    num_key_value_heads: Heads | None
    head_dim: Width | None
    intermediate_size_mlp: Width | None = None  # of dense layers; `intermediate_size` is that of an expert
    num_local_experts: Experts
    num_experts_per_tok: Experts
    moe_layers: list[Annotated[int, Meta(ge=0)]] | None = None
    interleave_moe_layer_step: Layers = 1
    no_rope_layers: list[Annotated[int, Meta(ge=0, le=1)]] | None = None
    no_rope_layer_interval: Layers = 4
    layer_types: list[str] | None = None
    attention_chunk_size: SequenceLength | None = 8192
    use_qk_norm: bool = True
    attn_temperature_tuning: bool | int = True
    floor_scale: SequenceLength = 8192
    attn_scale: Annotated[float, Meta(ge=0, le=1e12)] = 0.1
    rms_norm_eps: Epsilon = 1e-5
    default_rope_theta: ClassVar[float] = 500_000.0
    architecture: ClassVar[str | None] = "Llama4ForCausalLM"
    stored_names: ClassVar[tuple[StoredName, ...]] = (
        StoredName("feed_forward.router.weight", "mlp.router.weight"),
        StoredName("feed_forward.experts.gate_up_proj", "mlp.experts.gate_up_proj", transposed=True),
        StoredName("feed_forward.experts.down_proj", "mlp.experts.down_proj", transposed=True),
        *(
            StoredName(f"feed_forward.{stored}{part}_proj.weight", f"mlp.{native}{part}_proj.weight")
            for stored, native in (("shared_expert.", "shared_experts."), ("", ""))
            for part in ("gate", "up", "down")
        ),
    )

    def passed_over(self) -> Iterator[tuple[str, str]]:
        """Yield what other fields decide, and sizes that no layer has."""
        if self.moe_layers is not None:
            yield "interleave_moe_layer_step", "moe_layers says which layers have experts"
        if len(_moe_layers(self)) == self.num_hidden_layers:
            yield "intermediate_size_mlp", "no layer is dense"
        if self.no_rope_layers:
            yield "no_rope_layer_interval", "no_rope_layers says which layers rotate"
        if CHUNKED not in _layer_types(self):
            yield "attention_chunk_size", "no layer attends within chunks"
        if not self.attn_temperature_tuning or all(_rotates(self)):
            for field in ("attn_temperature_tuning", "floor_scale", "attn_scale"):
                yield field, "no layer sharpens its softmax with the position"


def model_spec(config: Config, name: str) -> ModelSpec:
    """Return the spec of a Llama-4 config.

    By default every `no_rope_layer_interval`-th layer does not rotate, and attends to the whole sequence.
    """
    moe_layers = _moe_layers(config)
    mixture = MixtureOfExpertsSpec(
        router=RouterSpec(
            hidden_size=config.hidden_size,
            num_experts=config.num_local_experts,
            top_k=config.num_experts_per_tok,
            scoring="sigmoid",
            checkpoint_name="router",
            n_group=1,
            topk_group=1,
            norm_topk_prob=False,
            routed_scaling_factor=1.0,
            correction_bias=False,
        ),
        expert=gated_mlp(config),
        shared_experts=gated_mlp(config),
        weighs_inputs=True,
    )

    if config.intermediate_size_mlp is None and len(moe_layers) < config.num_hidden_layers:
        raise ConfigError("intermediate_size_mlp", None, MISSING)
    dense = gated_mlp(config, config.intermediate_size_mlp)

    def layer(index: int, rotates: bool, layer_type: str) -> LayerSpec:
        return LayerSpec(
            attention=_attention(config, rotates=rotates, chunked=layer_type == CHUNKED),
            feed_forward=mixture if index in moe_layers else dense,
            norm_eps=config.rms_norm_eps,
        )

    kinds = zip(range(config.num_hidden_layers), _rotates(config), _layer_types(config), strict=True)
    return config.model_spec(name, [layer(*kind) for kind in kinds])


def _attention(config: Config, *, rotates: bool, chunked: bool) -> GroupedQueryAttentionSpec:
    """Return the attention of a layer; its norm of queries and keys is of those that are rotated."""
    if chunked and config.attention_chunk_size is None:
        rule = f"must be given, since layers have {CHUNKED}"
        raise ConfigError("attention_chunk_size", None, rule)
    norm = config.use_qk_norm and rotates
    heated = config.attn_temperature_tuning and not rotates
    bias = config.attention_bias
    spec = grouped_query_attention(
        config,
        rotates=rotates,
        qkv_bias=bias,
        output_bias=bias,
        query_key_norm="l2" if norm else None,
        chunk=config.attention_chunk_size if chunked else None,
        temperature=TemperatureSpec(floor_scale=config.floor_scale, scale=config.attn_scale) if heated else None,
    )
    rotary = spec.rotary and msgspec.structs.replace(spec.rotary, interleaved=True)
    return msgspec.structs.replace(spec, rotary=rotary)


def _moe_layers(config: Config) -> set[int]:
    """The layers with experts; of `moe_layers` those that exist."""
    step, total = config.interleave_moe_layer_step, config.num_hidden_layers
    return set(range(step - 1, total, step)) if config.moe_layers is None else {*config.moe_layers} & {*range(total)}


def _rotates(config: Config) -> list[bool]:
    """Whether each layer rotates queries and keys."""
    given, total = config.no_rope_layers, config.num_hidden_layers
    if not given:
        return [(index + 1) % config.no_rope_layer_interval != 0 for index in range(total)]
    if len(given) != total:
        raise ConfigError("no_rope_layers", len(given), f"must name {total} layers, as many as num_hidden_layers")
    return [each == 1 for each in given]


def _layer_types(config: Config) -> list[str]:
    """Whether each layer attends within chunks; by default those that rotate do."""
    given, total = config.layer_types, config.num_hidden_layers
    if given is None:
        return [CHUNKED if rotates else FULL for rotates in _rotates(config)]
    if unknown := set(given) - {FULL, CHUNKED}:
        raise ConfigError("layer_types", sorted(unknown)[0], f"is not known; must be {FULL} or {CHUNKED}")
    if len(given) != total:
        raise ConfigError("layer_types", len(given), f"must name {total} layers, as many as num_hidden_layers")
    return given
