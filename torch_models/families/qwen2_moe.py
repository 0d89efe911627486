"""Qwen1.5-MoE and Qwen2-57B-A14B (arXiv 2407.10671, §2.2.2).

Qwen2's attention; routed experts, and a shared expert whose output is multiplied by a sigmoid gate for each token.
"""

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from torch_models.errors import ConfigError
from torch_models.fields.family_config import FamilyConfig
from torch_models.fields.shared import (
    gated_mlp,
    grouped_query_attention,
    is_sparse,
    softmax_router,
    window_by_layer,
)
from torch_models.spec import (
    MAX_SEQUENCE_LENGTH,
    Experts,
    Heads,
    Layers,
    LayerSpec,
    MixtureOfExpertsSpec,
    ModelSpec,
    Width,
)


class Config(FamilyConfig, frozen=True, kw_only=True):
    """The fields of a `Qwen2MoeForCausalLM` config; fields that determine a shape have no default."""

    num_key_value_heads: Heads
    attention_bias: bool = True
    qkv_bias: bool = True
    num_experts: Experts
    num_experts_per_tok: Experts
    moe_intermediate_size: Width
    shared_expert_intermediate_size: Width
    norm_topk_prob: bool = False
    decoder_sparse_step: Layers = 1
    mlp_only_layers: list[Annotated[int, Meta(ge=0)]] | None = None
    use_sliding_window: bool = False
    sliding_window: Annotated[int, Meta(ge=0, le=MAX_SEQUENCE_LENGTH)] | None = 4096  # transformers saves 0 for none
    max_window_layers: Annotated[int, Meta(ge=0)] = 28
    layer_types: list[str] | None = None

    def passed_over(self) -> Iterator[tuple[str, str]]:
        """Yield the fields of windows that have no effect."""
        if not self.use_sliding_window:
            yield "sliding_window", "no layer has a window"
            yield "max_window_layers", "no layer has a window"
        elif self.layer_types is not None:
            yield "max_window_layers", "layer_types says which layers have a window"


def model_spec(config: Config, name: str) -> ModelSpec:
    """Return the spec of a Qwen2-MoE config.

    Every `decoder_sparse_step`-th layer is a mixture of experts, unless `mlp_only_layers` contains its index. With
    `use_sliding_window`, layers of even index below `max_window_layers` have the window, as in transformers, unless
    `layer_types` says which. Raises `ConfigError` for a window of 0 positions, and if `attention_bias` denies the
    biases that `qkv_bias` gives.
    """
    if config.qkv_bias and not config.attention_bias:
        rule = "qkv_bias says whether queries, keys and values have biases, and they have them"
        raise ConfigError("attention_bias", config.attention_bias, rule)
    mixture = MixtureOfExpertsSpec(
        router=softmax_router(config, config.num_experts, norm_topk_prob=config.norm_topk_prob),
        expert=gated_mlp(config, config.moe_intermediate_size),
        shared_experts=gated_mlp(config, config.shared_expert_intermediate_size),
        shared_expert_gate=True,
        shared_name="shared_expert",
    )
    dense = gated_mlp(config)
    window = config.sliding_window if config.use_sliding_window else None
    if window == 0:
        raise ConfigError("sliding_window", window, "must be at least 1 with use_sliding_window")
    windows = window_by_layer(config, window, lambda index: index % 2 == 0 and index < config.max_window_layers)

    def layer(index: int) -> LayerSpec:
        return LayerSpec(
            attention=grouped_query_attention(config, qkv_bias=config.qkv_bias, window=windows[index]),
            feed_forward=mixture if is_sparse(config, index) else dense,
            norm_eps=config.rms_norm_eps,
        )

    return config.model_spec(name, map(layer, range(config.num_hidden_layers)))
