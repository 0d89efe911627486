"""Qwen3-MoE (arXiv 2505.09388): Qwen3 with routed experts in all layers except those that the config keeps dense."""

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from torch_models.fields.family_config import FamilyConfig
from torch_models.fields.shared import gated_mlp, grouped_query_attention, is_sparse, softmax_router
from torch_models.spec import (
    Experts,
    Heads,
    Layers,
    LayerSpec,
    MixtureOfExpertsSpec,
    ModelSpec,
    SequenceLength,
    Width,
)


class Config(FamilyConfig, frozen=True, kw_only=True):
    """The fields of a `Qwen3MoeForCausalLM` config; the counts of heads and experts have no default."""

    num_key_value_heads: Heads
    num_experts: Experts
    num_experts_per_tok: Experts
    moe_intermediate_size: Width
    norm_topk_prob: bool = False
    decoder_sparse_step: Layers = 1
    mlp_only_layers: list[Annotated[int, Meta(ge=0)]] | None = None
    use_sliding_window: bool = False
    sliding_window: SequenceLength | None = 4096
    max_window_layers: Annotated[int, Meta(ge=0)] | None = None

    def passed_over(self) -> Iterator[tuple[str, str]]:
        """Yield `max_window_layers`: as in transformers, the window is of every layer or of none."""
        yield "max_window_layers", "every layer has the window" if self.use_sliding_window else "no layer has a window"


def model_spec(config: Config, name: str) -> ModelSpec:
    """Return the spec of a Qwen3-MoE config.

    Every `decoder_sparse_step`-th layer is a mixture of experts, unless `mlp_only_layers` contains its index. With
    `use_sliding_window` every layer has the window, as in transformers, which ignores `max_window_layers`.
    """
    bias = config.attention_bias
    attention = grouped_query_attention(
        config,
        qkv_bias=bias,
        output_bias=bias,
        query_key_norm="head",
        window=config.sliding_window if config.use_sliding_window else None,
    )
    mixture = MixtureOfExpertsSpec(
        router=softmax_router(config, config.num_experts, norm_topk_prob=config.norm_topk_prob),
        expert=gated_mlp(config, config.moe_intermediate_size),
        shared_experts=None,
    )
    moe = LayerSpec(attention=attention, feed_forward=mixture, norm_eps=config.rms_norm_eps)
    dense = LayerSpec(attention=attention, feed_forward=gated_mlp(config), norm_eps=config.rms_norm_eps)
    layers = [moe if is_sparse(config, index) else dense for index in range(config.num_hidden_layers)]
    return config.model_spec(name, layers)
