"""Gemma-2 (arXiv 2408.00118): norms around blocks, GeGLU, soft-capped scores and logits, every second layer local."""

from collections.abc import Iterator

from torch_models.fields.family_config import FamilyConfig
from torch_models.fields.shared import gated_mlp, grouped_query_attention, window_by_layer
from torch_models.spec import Activation, Heads, LayerSpec, ModelSpec, Positive, SequenceLength, Width

DEFAULT_ACTIVATION: Activation = "gelu_pytorch_tanh"


class Config(FamilyConfig, frozen=True, kw_only=True):
    """The fields of a `Gemma2ForCausalLM` config; defaults as in transformers, but head counts and sizes have none."""

    num_key_value_heads: Heads
    head_dim: Width
    hidden_act: Activation = DEFAULT_ACTIVATION
    hidden_activation: Activation | None = None  # transformers reads only this field
    tie_word_embeddings: bool = True
    query_pre_attn_scalar: Width = 256
    sliding_window: SequenceLength | None = 4096
    layer_types: list[str] | None = None
    attn_logit_softcapping: Positive | None = 50.0
    final_logit_softcapping: Positive | None = 30.0

    def passed_over(self) -> Iterator[tuple[str, str]]:
        """Yield `hidden_act`, which transformers does not read."""
        yield "hidden_act", f"the activation is {self.hidden_activation or DEFAULT_ACTIVATION}, by hidden_activation"


def model_spec(config: Config, name: str) -> ModelSpec:
    """Return the spec of a Gemma-2 config; by default local and global layers alternate, and the first is local."""
    bias = config.attention_bias
    windows = window_by_layer(config, config.sliding_window, lambda index: index % 2 == 0)
    mlp = gated_mlp(config, activation=config.hidden_activation or DEFAULT_ACTIVATION)

    def layer(window: int | None) -> LayerSpec:
        return LayerSpec(
            attention=grouped_query_attention(
                config,
                qkv_bias=bias,
                output_bias=bias,
                window=window,
                logit_softcap=config.attn_logit_softcapping,
                scale_channels=config.query_pre_attn_scalar,
            ),
            feed_forward=mlp,
            norm_eps=config.rms_norm_eps,
            norm_placement="around",
            norm_unit_offset=True,
        )

    return config.model_spec(
        name,
        [layer(window) for window in windows],
        norm_unit_offset=True,
        embedding_scale=config.hidden_size**0.5,
        final_logit_softcap=config.final_logit_softcapping,
    )
