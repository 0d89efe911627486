"""Gemma-3, the text decoder (arXiv 2503.19786): Gemma-2 with norms of queries and keys in place of soft caps.

Five local layers come before each global one, and rotate by a base of their own.
"""

from collections.abc import Iterator
from typing import Annotated, ClassVar

from msgspec import Meta

from torch_models.fields.rope import LocalRotaryConfig
from torch_models.fields.shared import gated_mlp, grouped_query_attention, window_by_layer
from torch_models.spec import (
    Activation,
    Heads,
    LayerSpec,
    ModelSpec,
    Positive,
    SequenceLength,
    Theta,
    Vocabulary,
    Width,
)

DEFAULT_ACTIVATION: Activation = "gelu_pytorch_tanh"


class Config(LocalRotaryConfig, frozen=True, kw_only=True):
    """The fields of a `Gemma3ForCausalLM` config.

    Defaults are those of transformers, also of sizes: the published models with images leave them out.
    """

    architecture: ClassVar[str | None] = "Gemma3ForCausalLM"
    default_rope_theta: ClassVar[float] = 1_000_000.0
    default_local_rope_theta: ClassVar[float] = 10_000.0

    vocab_size: Vocabulary = 262_208
    num_attention_heads: Heads = 8
    num_key_value_heads: Heads = 4
    head_dim: Width = 256
    hidden_act: Activation = DEFAULT_ACTIVATION
    hidden_activation: Activation | None = None  # transformers reads only this field
    tie_word_embeddings: bool = True
    query_pre_attn_scalar: Width = 256
    sliding_window: SequenceLength | None = 4096
    sliding_window_pattern: Annotated[int, Meta(ge=1, le=65536)] = 6  # every so many layers one is global
    layer_types: list[str] | None = None
    rope_local_base_freq: Theta | None = None
    attn_logit_softcapping: None = None  # transformers declares it, and its layers do not cap
    final_logit_softcapping: Positive | None = None

    def passed_over(self) -> Iterator[tuple[str, str]]:
        """Yield `hidden_act`, which transformers does not read, and the pattern where `layer_types` has the layers."""
        yield "hidden_act", f"the activation is {self.hidden_activation or DEFAULT_ACTIVATION}, by hidden_activation"
        if self.layer_types is not None:
            yield "sliding_window_pattern", "the layers are those of layer_types"


def model_spec(config: Config, name: str) -> ModelSpec:
    """Return the spec of a Gemma-3 config; by default every `sliding_window_pattern`-th layer is global."""
    bias, pattern = config.attention_bias, config.sliding_window_pattern
    windows = window_by_layer(config, config.sliding_window, lambda index: (index + 1) % pattern != 0)
    mlp = gated_mlp(config, activation=config.hidden_activation or DEFAULT_ACTIVATION)

    def layer(window: int | None) -> LayerSpec:
        return LayerSpec(
            attention=grouped_query_attention(
                config,
                qkv_bias=bias,
                output_bias=bias,
                window=window,
                query_key_norm="head",
                norm_unit_offset=True,
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
