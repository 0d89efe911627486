"""Mistral (arXiv 2310.06825): Llama with grouped-query attention and, in the first version, a sliding window."""

from typing import Literal

from torch_models.fields.family_config import FamilyConfig
from torch_models.fields.shared import gated_mlp, grouped_query_attention
from torch_models.spec import Heads, LayerSpec, ModelSpec, SequenceLength


class Config(FamilyConfig, frozen=True, kw_only=True):
    """The fields of a `MistralForCausalLM` config; defaults as in transformers, but head counts have none."""

    num_key_value_heads: Heads
    attention_bias: Literal[False] = False
    sliding_window: SequenceLength | None = 4096


def model_spec(config: Config, name: str) -> ModelSpec:
    """Return the spec of a Mistral config; all layers are equal."""
    layer = LayerSpec(
        attention=grouped_query_attention(config, window=config.sliding_window),
        feed_forward=gated_mlp(config),
        norm_eps=config.rms_norm_eps,
    )
    return config.model_spec(name, [layer] * config.num_hidden_layers)
