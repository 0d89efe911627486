"""DeepSeek-V3 (arXiv 2412.19437, §2).

Multi-head latent attention, dense first layers, then shared and routed experts behind a sigmoid router with groups
and a correction bias; multi-token prediction beside it.
"""

from typing import Annotated, Literal

from msgspec import Meta

from torch_models.config import FamilyConfig
from torch_models.errors import ConfigError
from torch_models.rope_fields import rotary_spec
from torch_models.spec import (
    Activation,
    Experts,
    FeedForwardSpec,
    GatedMLPSpec,
    Layers,
    LayerSpec,
    MixtureOfExpertsSpec,
    ModelSpec,
    MultiHeadLatentAttentionSpec,
    Positive,
    RouterSpec,
    Width,
    check_width,
)


class Config(FamilyConfig, frozen=True, kw_only=True):
    """The fields of a `DeepseekV3ForCausalLM` config; what decides a shape has no default."""

    hidden_act: Activation = "silu"
    q_lora_rank: Width | None
    kv_lora_rank: Width
    qk_nope_head_dim: Width
    qk_rope_head_dim: Width
    v_head_dim: Width
    head_dim: Width | None = None  # transformers writes the two derived sizes into the files it saves
    qk_head_dim: Width | None = None
    rope_interleave: bool = True
    moe_intermediate_size: Width
    n_routed_experts: Experts
    n_shared_experts: Annotated[int, Meta(ge=0, le=1024)] | None
    num_experts_per_tok: Experts
    n_group: Experts
    topk_group: Experts
    first_k_dense_replace: Annotated[int, Meta(ge=0)]
    moe_layer_freq: Layers = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: Positive = 2.5
    scoring_func: Literal["sigmoid"] = "sigmoid"
    topk_method: Literal["noaux_tc"] = "noaux_tc"
    num_nextn_predict_layers: Annotated[int, Meta(ge=0, le=64)] = 1


def model_spec(config: Config, name: str) -> ModelSpec:
    """The model that a DeepSeek-V3 config describes: `first_k_dense_replace` dense layers, then mixtures of experts."""
    layers_total = config.num_hidden_layers
    if config.first_k_dense_replace > layers_total:
        raise ConfigError(
            "first_k_dense_replace",
            config.first_k_dense_replace,
            f"must be at most num_hidden_layers ({layers_total})",
        )
    attention = _attention(config)
    dense = LayerSpec(
        attention=attention,
        feed_forward=_mlp(config, config.intermediate_size),
        norm_eps=config.rms_norm_eps,
    )
    moe = LayerSpec(attention=attention, feed_forward=_mixture(config), norm_eps=config.rms_norm_eps)

    def is_moe(index: int) -> bool:
        return index >= config.first_k_dense_replace and index % config.moe_layer_freq == 0

    return config.model_spec(
        name,
        layers=[moe if is_moe(index) else dense for index in range(layers_total)],
        mtp_layers=[moe] * config.num_nextn_predict_layers,
    )


def _attention(config: Config) -> MultiHeadLatentAttentionSpec:
    heads = config.num_attention_heads
    derived = (
        ("num_key_value_heads", config.num_key_value_heads, heads, "num_attention_heads: every head has its own key"),
        ("head_dim", config.head_dim, config.qk_rope_head_dim, "qk_rope_head_dim, the rotated channels"),
        (
            "qk_head_dim",
            config.qk_head_dim,
            config.qk_nope_head_dim + config.qk_rope_head_dim,
            "qk_nope_head_dim + qk_rope_head_dim",
        ),
    )
    for field, given, expected, meaning in derived:
        if given not in (None, expected):
            raise ConfigError(field, given, f"must be {expected}, {meaning}")
    return MultiHeadLatentAttentionSpec(
        hidden_size=config.hidden_size,
        num_attention_heads=heads,
        q_lora_rank=config.q_lora_rank,
        kv_lora_rank=config.kv_lora_rank,
        qk_nope_head_dim=config.qk_nope_head_dim,
        qk_rope_head_dim=config.qk_rope_head_dim,
        v_head_dim=config.v_head_dim,
        rotary=rotary_spec(config, config.qk_rope_head_dim, interleaved=config.rope_interleave),
        bias=config.attention_bias,
    )


def _mlp(config: Config, intermediate_size: int) -> GatedMLPSpec:
    return GatedMLPSpec(
        hidden_size=config.hidden_size, intermediate_size=intermediate_size, activation=config.hidden_act
    )


def _mixture(config: Config) -> FeedForwardSpec:
    shared_width = (config.n_shared_experts or 0) * config.moe_intermediate_size
    check_width("n_shared_experts * moe_intermediate_size", shared_width)
    return MixtureOfExpertsSpec(
        router=RouterSpec(
            hidden_size=config.hidden_size,
            num_experts=config.n_routed_experts,
            top_k=config.num_experts_per_tok,
            n_group=config.n_group,
            topk_group=config.topk_group,
            norm_topk_prob=config.norm_topk_prob,
            routed_scaling_factor=config.routed_scaling_factor,
            correction_bias=True,
        ),
        expert=_mlp(config, config.moe_intermediate_size),
        shared_experts=_mlp(config, shared_width) if shared_width else None,
    )
