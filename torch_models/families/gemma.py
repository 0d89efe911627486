"""Gemma (arXiv 2403.08295): Llama with GeGLU, norms that multiply by 1 + weight, and scaled embeddings."""

from collections.abc import Iterator

from torch_models.fields.family_config import FamilyConfig
from torch_models.fields.shared import gated_mlp, grouped_query_attention
from torch_models.spec import Activation, Heads, LayerSpec, ModelSpec, Width

TANH: Activation = "gelu_pytorch_tanh"


class Config(FamilyConfig, frozen=True, kw_only=True):
    """The fields of a `GemmaForCausalLM` config; defaults as in transformers, but head counts and sizes have none."""

    num_key_value_heads: Heads
    head_dim: Width
    hidden_act: Activation = TANH
    hidden_activation: Activation | None = None
    tie_word_embeddings: bool = True

    def passed_over(self) -> Iterator[tuple[str, str]]:
        """Yield `hidden_act` where the first files name another activation than the models have."""
        if self.hidden_act == "gelu":
            yield "hidden_act", f"the published models are meant to have {TANH}, as transformers reads it"
        yield "hidden_activation", "transformers reads hidden_act alone"


def model_spec(config: Config, name: str) -> ModelSpec:
    """Return the spec of a Gemma config; all layers are equal."""
    bias = config.attention_bias
    layer = LayerSpec(
        attention=grouped_query_attention(config, qkv_bias=bias, output_bias=bias),
        feed_forward=gated_mlp(config, activation=TANH if config.hidden_act == "gelu" else None),
        norm_eps=config.rms_norm_eps,
        norm_unit_offset=True,
    )
    return config.model_spec(
        name,
        [layer] * config.num_hidden_layers,
        norm_unit_offset=True,
        embedding_scale=config.hidden_size**0.5,
    )
