"""OLMo-2 (arXiv 2501.00656): Llama with norms after the blocks, and norms of queries and keys over the full width."""

from torch_models.fields.family_config import FamilyConfig
from torch_models.fields.shared import gated_mlp, grouped_query_attention
from torch_models.spec import Epsilon, LayerSpec, ModelSpec


class Config(FamilyConfig, frozen=True, kw_only=True):
    """The fields of an `Olmo2ForCausalLM` config; defaults as in transformers."""

    rms_norm_eps: Epsilon = 1e-5


def model_spec(config: Config, name: str) -> ModelSpec:
    """Return the spec of an OLMo-2 config; all layers are equal."""
    bias = config.attention_bias
    layer = LayerSpec(
        attention=grouped_query_attention(config, qkv_bias=bias, output_bias=bias, query_key_norm="width"),
        feed_forward=gated_mlp(config),
        norm_eps=config.rms_norm_eps,
        norm_placement="after",
    )
    return config.model_spec(name, [layer] * config.num_hidden_layers)
