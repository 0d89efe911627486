"""Llama (1, 2, 3): grouped-query attention with rotary embedding, SwiGLU, RMSNorm before each block."""

from torch_models.fields.family_config import FamilyConfig
from torch_models.fields.shared import gated_mlp, grouped_query_attention
from torch_models.spec import LayerSpec, ModelSpec


class Config(FamilyConfig, frozen=True, kw_only=True):
    """The fields of a `LlamaForCausalLM` config; defaults as in transformers."""

    mlp_bias: bool = False


def model_spec(config: Config, name: str) -> ModelSpec:
    """Return the spec of a Llama config; all layers are equal."""
    bias = config.attention_bias
    layer = LayerSpec(
        attention=grouped_query_attention(config, qkv_bias=bias, output_bias=bias),
        feed_forward=gated_mlp(config, bias=config.mlp_bias),
        norm_eps=config.rms_norm_eps,
    )
    return config.model_spec(name, [layer] * config.num_hidden_layers)
