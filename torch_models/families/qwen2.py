"""Qwen2 and Qwen2.5 (arXiv 2407.10671): Llama with biases on queries, keys and values, which no field turns off."""

from typing import Annotated, Literal

from msgspec import Meta

from torch_models.fields.family_config import FamilyConfig
from torch_models.fields.shared import gated_mlp, grouped_query_attention, window_by_layer
from torch_models.spec import Heads, LayerSpec, ModelSpec, SequenceLength


class Config(FamilyConfig, frozen=True, kw_only=True):
    """The fields of a `Qwen2ForCausalLM` config; defaults as in transformers, but head counts have none."""

    num_key_value_heads: Heads
    attention_bias: Literal[True] = True
    use_sliding_window: bool = False
    sliding_window: SequenceLength | None = 4096
    max_window_layers: Annotated[int, Meta(ge=0)] = 28
    layer_types: list[str] | None = None


def model_spec(config: Config, name: str) -> ModelSpec:
    """Return the spec of a Qwen2 config; by default layers from `max_window_layers` on may have a window."""
    window = config.sliding_window if config.use_sliding_window else None
    windows = window_by_layer(config, window, lambda index: index >= config.max_window_layers)

    def layer(window: int | None) -> LayerSpec:
        return LayerSpec(
            attention=grouped_query_attention(config, qkv_bias=True, window=window),
            feed_forward=gated_mlp(config),
            norm_eps=config.rms_norm_eps,
        )

    return config.model_spec(name, [layer(window) for window in windows])
