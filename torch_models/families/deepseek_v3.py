"""DeepSeek-V3 (arXiv 2412.19437, §2).

Multi-head latent attention; dense first layers, then shared and routed experts with a sigmoid router that has groups
and a correction bias; multi-token prediction.
"""

from typing import Annotated, Literal

from msgspec import Meta

from torch_models.fields.latent_attention import LatentAttentionConfig, latent_attention
from torch_models.fields.shared import dense_then_moe, gated_mlp, sigmoid_mixture
from torch_models.spec import (
    Experts,
    Layers,
    LayerSpec,
    ModelSpec,
    Positive,
    Width,
)


class Config(LatentAttentionConfig, frozen=True, kw_only=True):
    """The fields of a `DeepseekV3ForCausalLM` config; fields that determine a layer's shape have no default."""

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
    """Return the spec of a DeepSeek-V3 config: `first_k_dense_replace` dense layers, then mixtures of experts."""
    attention = latent_attention(config)
    dense = LayerSpec(attention=attention, feed_forward=gated_mlp(config), norm_eps=config.rms_norm_eps)
    moe = LayerSpec(attention=attention, feed_forward=sigmoid_mixture(config), norm_eps=config.rms_norm_eps)
    return config.model_spec(
        name,
        layers=dense_then_moe(config, dense, moe, config.moe_layer_freq),
        mtp_layers=[moe] * config.num_nextn_predict_layers,
    )
