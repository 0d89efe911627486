"""Qwen3 (arXiv 2505.09388): norms of each query and key head, and a head size independent of the hidden size."""

from typing import Annotated

from msgspec import Meta

from torch_models.fields.family_config import FamilyConfig
from torch_models.fields.shared import gated_mlp, grouped_query_attention, window_by_layer
from torch_models.spec import Heads, LayerSpec, ModelSpec, SequenceLength, Width


class Config(FamilyConfig, frozen=True, kw_only=True):
    """The fields of a `Qwen3ForCausalLM` config; defaults as in transformers, but head counts and sizes have none."""

    num_key_value_heads: Heads
    head_dim: Width
    use_sliding_window: bool = False
    sliding_window: SequenceLength | None = 4096
    max_window_layers: Annotated[int, Meta(ge=0)] = 28
    layer_types: list[str] | None = None


def model_spec(config: Config, name: str) -> ModelSpec:
    """Return the spec of a Qwen3 config; by default layers from `max_window_layers` on may have a window."""
    bias = config.attention_bias
    window = config.sliding_window if config.use_sliding_window else None
    windows = window_by_layer(config, window, lambda index: index >= config.max_window_layers)

    def layer(window: int | None) -> LayerSpec:
        return LayerSpec(
            attention=grouped_query_attention(
                config, qkv_bias=bias, output_bias=bias, query_key_norm="head", window=window
            ),
            feed_forward=gated_mlp(config),
            norm_eps=config.rms_norm_eps,
        )

    return config.model_spec(name, [layer(window) for window in windows])
