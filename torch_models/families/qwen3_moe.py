"""Qwen3-MoE (arXiv 2505.09388): Qwen3 with routed experts in all layers but those that the config keeps dense."""

from typing import Annotated, Literal

from msgspec import Meta

from torch_models.common_fields import gated_mlp, grouped_query_attention
from torch_models.config import FamilyConfig
from torch_models.spec import (
    Experts,
    Heads,
    Layers,
    LayerSpec,
    MixtureOfExpertsSpec,
    ModelSpec,
    RouterSpec,
    SequenceLength,
    Width,
)


class Config(FamilyConfig, frozen=True, kw_only=True):
    """The fields of a `Qwen3MoeForCausalLM` config; what decides a shape has no default."""

    num_key_value_heads: Heads
    head_dim: Width
    num_experts: Experts
    num_experts_per_tok: Experts
    moe_intermediate_size: Width
    norm_topk_prob: bool = False
    decoder_sparse_step: Layers = 1
    mlp_only_layers: list[Annotated[int, Meta(ge=0)]] | None = None
    use_sliding_window: Literal[False] = False  # published models have none
    sliding_window: SequenceLength | None = None  # without effect where use_sliding_window is false
    max_window_layers: Annotated[int, Meta(ge=0)] | None = None


def model_spec(config: Config, name: str) -> ModelSpec:
    """Every `decoder_sparse_step`-th layer is a mixture of experts, unless `mlp_only_layers` names it."""
    bias = config.attention_bias
    attention = grouped_query_attention(config, qkv_bias=bias, output_bias=bias, query_key_norm="head")
    mixture = MixtureOfExpertsSpec(
        router=RouterSpec(
            hidden_size=config.hidden_size,
            num_experts=config.num_experts,
            top_k=config.num_experts_per_tok,
            scoring="softmax",
            n_group=1,
            topk_group=1,
            norm_topk_prob=config.norm_topk_prob,
            routed_scaling_factor=1.0,
            correction_bias=False,
        ),
        expert=gated_mlp(config, config.moe_intermediate_size),
        shared_experts=None,
    )
    moe = LayerSpec(attention=attention, feed_forward=mixture, norm_eps=config.rms_norm_eps)
    dense = LayerSpec(attention=attention, feed_forward=gated_mlp(config), norm_eps=config.rms_norm_eps)
    kept_dense = set(config.mlp_only_layers or ())

    def is_moe(index: int) -> bool:
        return index not in kept_dense and (index + 1) % config.decoder_sparse_step == 0

    layers = [moe if is_moe(index) else dense for index in range(config.num_hidden_layers)]
    return config.model_spec(name, layers)
