"""OLMo-3 (Olmo 3, arXiv 2512.13961): OLMo-2 with three local layers before each global one."""

from typing import ClassVar

from torch_models.fields.rope import LocalRotaryConfig
from torch_models.fields.shared import gated_mlp, grouped_query_attention, window_by_layer
from torch_models.spec import Epsilon, LayerSpec, ModelSpec, SequenceLength


class Config(LocalRotaryConfig, frozen=True, kw_only=True):
    """The fields of an `Olmo3ForCausalLM` config; defaults as in transformers."""

    default_rope_theta: ClassVar[float] = 500_000.0
    default_local_rope_theta: ClassVar[float] = 500_000.0  # whatever `rope_theta` says of the global layers

    rms_norm_eps: Epsilon = 1e-5
    sliding_window: SequenceLength | None = 4096
    layer_types: list[str] | None = None


def model_spec(config: Config, name: str) -> ModelSpec:
    """Return the spec of an OLMo-3 config; by default every fourth layer is global."""
    bias = config.attention_bias
    windows = window_by_layer(config, config.sliding_window, lambda index: (index + 1) % 4 != 0)

    def layer(window: int | None) -> LayerSpec:
        return LayerSpec(
            attention=grouped_query_attention(
                config, qkv_bias=bias, output_bias=bias, query_key_norm="width", window=window
            ),
            feed_forward=gated_mlp(config),
            norm_eps=config.rms_norm_eps,
            norm_placement="after",
        )

    return config.model_spec(name, [layer(window) for window in windows])
