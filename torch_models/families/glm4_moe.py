"""GLM-4.5 and GLM-4.5-Air (arXiv 2508.06471).

Grouped-query attention with rotation of half of each head and biases on queries, keys and values; DeepSeek-V3's router
and shared experts; multi-token prediction.
"""

from typing import Annotated

from msgspec import Meta

from torch_models.fields.family_config import FamilyConfig
from torch_models.fields.rope import rotary_share
from torch_models.fields.shared import dense_then_moe, gated_mlp, grouped_query_attention, sigmoid_mixture
from torch_models.spec import (
    Epsilon,
    Experts,
    Heads,
    LayerSpec,
    ModelSpec,
    Positive,
    Share,
    Width,
)

ROTARY_SHARE = 0.5  # if the config has no partial_rotary_factor


class Config(FamilyConfig, frozen=True, kw_only=True):
    """The fields of a `Glm4MoeForCausalLM` config; most fields that determine a shape have no default."""

    num_key_value_heads: Heads
    partial_rotary_factor: Share | None = None
    use_qk_norm: bool = False
    moe_intermediate_size: Width
    n_routed_experts: Experts
    n_shared_experts: Annotated[int, Meta(ge=0, le=1024)] | None
    num_experts_per_tok: Experts
    n_group: Experts = 1
    topk_group: Experts = 1
    first_k_dense_replace: Annotated[int, Meta(ge=0)]
    norm_topk_prob: bool = True
    routed_scaling_factor: Positive = 1.0
    num_nextn_predict_layers: Annotated[int, Meta(ge=0, le=64)] = 1
    rms_norm_eps: Epsilon = 1e-5


def model_spec(config: Config, name: str) -> ModelSpec:
    """Return the spec of a GLM-4.5 config: `first_k_dense_replace` dense layers, then mixtures of experts."""
    attention = grouped_query_attention(
        config,
        qkv_bias=config.attention_bias,
        rotary_share=rotary_share(config, ROTARY_SHARE),
        query_key_norm="head" if config.use_qk_norm else None,
    )
    dense = LayerSpec(attention=attention, feed_forward=gated_mlp(config), norm_eps=config.rms_norm_eps)
    moe = LayerSpec(attention=attention, feed_forward=sigmoid_mixture(config), norm_eps=config.rms_norm_eps)
    return config.model_spec(
        name,
        layers=dense_then_moe(config, dense, moe),
        mtp_layers=[moe] * config.num_nextn_predict_layers,
    )
