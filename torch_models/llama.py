"""Llama (1, 2, 3): grouped-query attention with rotary embedding, SwiGLU, RMSNorm before each block."""

from torch_models.config import FamilyConfig
from torch_models.errors import ConfigError
from torch_models.rope_fields import rotary_spec
from torch_models.spec import Activation, GatedMLPSpec, GroupedQueryAttentionSpec, LayerSpec, ModelSpec, Width


class Config(FamilyConfig, frozen=True, kw_only=True):
    """The fields of a `LlamaForCausalLM` config; defaults are transformers'."""

    hidden_act: Activation = "silu"
    head_dim: Width | None = None
    mlp_bias: bool = False


def model_spec(config: Config, name: str) -> ModelSpec:
    """The model that a Llama config describes: all layers alike."""
    heads = config.num_attention_heads
    if config.head_dim is None and config.hidden_size % heads:
        raise ConfigError(
            "num_attention_heads",
            heads,
            f"hidden_size ({config.hidden_size}) must be divisible by num_attention_heads ({heads})",
        )
    head_dim = config.head_dim or config.hidden_size // heads
    layer = LayerSpec(
        attention=GroupedQueryAttentionSpec(
            hidden_size=config.hidden_size,
            num_attention_heads=heads,
            num_key_value_heads=config.num_key_value_heads or heads,
            head_dim=head_dim,
            rotary=rotary_spec(config, head_dim),
            qkv_bias=config.attention_bias,
            output_bias=config.attention_bias,
        ),
        feed_forward=GatedMLPSpec(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            activation=config.hidden_act,
            bias=config.mlp_bias,
        ),
        norm_eps=config.rms_norm_eps,
    )
    return config.model_spec(name, [layer] * config.num_hidden_layers)
