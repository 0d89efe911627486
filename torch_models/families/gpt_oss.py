"""gpt-oss (arXiv 2508.10925): attention sinks, every second layer local, biases, experts with a clamped gate."""

from typing import ClassVar, Literal

from torch_models.errors import ConfigError
from torch_models.fields.conversion import MISSING
from torch_models.fields.family_config import FamilyConfig
from torch_models.fields.rope import rope_fields
from torch_models.fields.shared import grouped_query_attention, softmax_router, window_by_layer
from torch_models.fields.stored_names import StoredName
from torch_models.spec import (
    ClampedMLPSpec,
    Epsilon,
    Experts,
    Heads,
    LayerSpec,
    MixtureOfExpertsSpec,
    ModelSpec,
    Positive,
    SequenceLength,
    Width,
)


class Config(FamilyConfig, frozen=True, kw_only=True):
    """The fields of a `GptOssForCausalLM` config; head and expert counts and the head size have no default."""

    num_key_value_heads: Heads
    head_dim: Width
    num_local_experts: Experts
    num_experts_per_tok: Experts
    hidden_act: Literal["silu"] = "silu"
    attention_bias: bool = True
    sliding_window: SequenceLength | None = 128
    layer_types: list[str] | None = None
    swiglu_alpha: Positive = 1.702
    swiglu_limit: Positive = 7.0
    initial_context_length: SequenceLength | None = None  # a copy of rope_scaling.original_max_position_embeddings
    rms_norm_eps: Epsilon = 1e-5
    default_rope_theta: ClassVar[float] = 150_000.0
    stored_names: ClassVar[tuple[StoredName, ...]] = ()  # experts are published stacked


def model_spec(config: Config, name: str) -> ModelSpec:
    """Return the spec of a gpt-oss config; by default local and global layers alternate, and the first is local.

    The router takes the softmax over the logits of the chosen experts. This equals the softmax over all experts with
    normalised weights.
    """
    _check_rope(config)
    bias = config.attention_bias
    windows = window_by_layer(config, config.sliding_window, lambda index: index % 2 == 0)
    mixture = MixtureOfExpertsSpec(
        router=softmax_router(
            config, config.num_local_experts, norm_topk_prob=True, bias=True, checkpoint_name="router"
        ),
        expert=ClampedMLPSpec(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            alpha=config.swiglu_alpha,
            limit=config.swiglu_limit,
        ),
        shared_experts=None,
    )

    def layer(window: int | None) -> LayerSpec:
        return LayerSpec(
            attention=grouped_query_attention(config, qkv_bias=bias, output_bias=bias, window=window, sinks=True),
            feed_forward=mixture,
            norm_eps=config.rms_norm_eps,
        )

    return config.model_spec(name, [layer(window) for window in windows])


def _check_rope(config: Config) -> None:
    """Raise `ConfigError` if the config has no scaling, for which transformers would use a default of its own."""
    if not (config.rope_parameters or config.rope_scaling):
        raise ConfigError("rope_scaling", None, MISSING)
    scaling = rope_fields(config)[1]
    original = scaling.get("original_max_position_embeddings")
    if config.initial_context_length is not None and original not in (None, config.initial_context_length):
        rule = f"rope_scaling.original_max_position_embeddings is {original}"
        raise ConfigError("initial_context_length", config.initial_context_length, rule)
