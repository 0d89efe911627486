"""SmolLM3 (Hugging Face 2025): Llama whose every fourth layer encodes no positions (NoPE, arXiv 2501.18795)."""

from collections.abc import Iterator
from typing import Annotated, ClassVar

from msgspec import Meta

from torch_models.errors import ConfigError
from torch_models.fields.family_config import FamilyConfig
from torch_models.fields.shared import gated_mlp, grouped_query_attention, window_by_layer
from torch_models.spec import Heads, LayerSpec, ModelSpec, SequenceLength

Switch = Annotated[int, Meta(ge=0, le=1)]


class Config(FamilyConfig, frozen=True, kw_only=True):
    """The fields of a `SmolLM3ForCausalLM` config; defaults as in transformers, but head counts have none."""

    architecture: ClassVar[str | None] = "SmolLM3ForCausalLM"
    default_rope_theta: ClassVar[float] = 2_000_000.0

    num_key_value_heads: Heads
    tie_word_embeddings: bool = True
    mlp_bias: bool = False
    no_rope_layers: list[Switch] | None = None  # 1 for a layer that rotates, 0 for one that does not
    no_rope_layer_interval: Annotated[int, Meta(ge=1)] = 4
    use_sliding_window: bool = False
    sliding_window: SequenceLength | None = None
    layer_types: list[str] | None = None
    max_window_layers: Annotated[int, Meta(ge=0)] | None = None

    def passed_over(self) -> Iterator[tuple[str, str]]:
        """Yield the interval where `no_rope_layers` has the layers, and a field of Qwen2's in published files."""
        yield "max_window_layers", "no code of SmolLM3 reads it"
        if self.no_rope_layers is not None:
            yield "no_rope_layer_interval", "the layers are those of no_rope_layers"


def model_spec(config: Config, name: str) -> ModelSpec:
    """Return the spec of a SmolLM3 config; a window, if it has one, is by default that of layers without positions."""
    bias = config.attention_bias
    rotating = _rotating_layers(config)
    window = config.sliding_window if config.use_sliding_window else None
    windows = window_by_layer(config, window, lambda index: not rotating[index])

    def layer(rotates: bool, window: int | None) -> LayerSpec:
        return LayerSpec(
            attention=grouped_query_attention(config, qkv_bias=bias, output_bias=bias, rotates=rotates, window=window),
            feed_forward=gated_mlp(config, bias=config.mlp_bias),
            norm_eps=config.rms_norm_eps,
        )

    return config.model_spec(name, [layer(*each) for each in zip(rotating, windows, strict=True)])


def _rotating_layers(config: Config) -> list[bool]:
    total, given = config.num_hidden_layers, config.no_rope_layers
    if given is None:
        return [(index + 1) % config.no_rope_layer_interval != 0 for index in range(total)]
    if len(given) < total:
        rule = f"must describe {total} layers, as many as num_hidden_layers"
        raise ConfigError("no_rope_layers", len(given), rule)
    return [bool(each) for each in given[:total]]
