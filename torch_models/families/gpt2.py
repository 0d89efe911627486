"""GPT-2 (Radford et al. 2019): multi-head attention, a learned table of positions, LayerNorm, an MLP without gate.

All projections have biases, and the head is the embedding. Checkpoints store matrices (in, out), and queries, keys and
values in one; the modules here have them apart. The fields are those of transformers' `GPT2Config`.
"""

from typing import Any, ClassVar

from torch_models.errors import ConfigError, NotModelledError
from torch_models.fields.family_config import PlainConfig
from torch_models.fields.stored_names import IRRELEVANT_TENSORS, StoredName
from torch_models.spec import (
    Activation,
    Epsilon,
    GroupedQueryAttentionSpec,
    Heads,
    Layers,
    LayerSpec,
    MLPSpec,
    ModelSpec,
    SequenceLength,
    Vocabulary,
    Width,
)

WIDTHS_OF_MLP = 4  # `n_inner` in multiples of `n_embd`, if it is not given

# transformers' names of activations that are one function, tanh's approximation of GELU.
ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "gelu": "gelu",
    "silu": "silu",
}


def _stored_names() -> tuple[StoredName, ...]:
    """As transformers saves them, and as OpenAI's weights are published, without the first part of the name."""
    found = [
        StoredName("wte.weight", "model.embed_tokens.weight"),
        StoredName("wpe.weight", "model.embed_tokens.positions.weight"),
        *(StoredName(f"ln_f.{kind}", f"model.norm.{kind}") for kind in ("weight", "bias")),
    ]
    for kind, transposed in (("weight", True), ("bias", False)):
        of_layer = [
            StoredName(f"ln_1.{kind}", f"input_layernorm.{kind}"),
            *(
                StoredName(f"attn.c_attn.{kind}", f"self_attn.{name}_proj.{kind}", transposed=transposed, third=third)
                for third, name in enumerate("qkv")
            ),
            StoredName(f"attn.c_proj.{kind}", f"self_attn.o_proj.{kind}", transposed=transposed),
            StoredName(f"ln_2.{kind}", f"post_attention_layernorm.{kind}"),
            StoredName(f"mlp.c_fc.{kind}", f"mlp.up_proj.{kind}", transposed=transposed),
            StoredName(f"mlp.c_proj.{kind}", f"mlp.down_proj.{kind}", transposed=transposed),
        ]
        found += [
            name._replace(stored=f"h.{{layer}}.{name.stored}", native=f"model.layers.{{layer}}.{name.native}")
            for name in of_layer
        ]
    return tuple(name._replace(stored=f"{prefix}{name.stored}") for prefix in ("transformer.", "") for name in found)


class Config(PlainConfig, frozen=True, kw_only=True):
    """The fields of a `GPT2LMHeadModel` config, with transformers' names for them beside those that all families have.

    The sizes, too, default to those of transformers: they are GPT-2's smallest model.
    """

    architecture: ClassVar[str | None] = "GPT2LMHeadModel"
    stored_names: ClassVar[tuple[StoredName, ...]] = _stored_names()
    irrelevant_tensors: ClassVar[dict[str, str]] = IRRELEVANT_TENSORS | dict.fromkeys(
        ("attn.bias", "attn.masked_bias"), "the causal mask, which published checkpoints store"
    )

    vocab_size: Vocabulary = 50257
    hidden_size: Width = 768
    num_hidden_layers: Layers = 12
    num_attention_heads: Heads = 12
    max_position_embeddings: SequenceLength = 1024
    n_inner: Width | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: Epsilon = 1e-5
    hidden_act: str | None = None  # another name of it
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True

    def standard_values(self) -> dict[str, tuple[Any, str]]:
        """Return the width of the MLP where it follows from that of the model."""
        if self.n_inner is not None:
            return {}
        return {"n_inner": (WIDTHS_OF_MLP * self.hidden_size, f"{WIDTHS_OF_MLP} * n_embd")}


def model_spec(config: Config, name: str) -> ModelSpec:
    """Return the spec of a GPT-2 config; all layers are equal, unless their scores are scaled by their places."""
    width, heads = config.hidden_size, config.num_attention_heads
    if width % heads:
        rule = f"hidden_size ({width}) must be divisible by num_attention_heads ({heads})"
        raise ConfigError("num_attention_heads", heads, rule)
    activation = _activation(config)
    mlp = MLPSpec(
        hidden_size=width,
        intermediate_size=config.n_inner or WIDTHS_OF_MLP * width,
        activation=activation,
        bias=True,
    )

    def layer(index: int) -> LayerSpec:
        divisor = index + 1 if config.scale_attn_by_inverse_layer_idx else 1
        return LayerSpec(
            attention=GroupedQueryAttentionSpec(
                hidden_size=width,
                num_attention_heads=heads,
                num_key_value_heads=heads,
                head_dim=width // heads,
                rotary=None,
                qkv_bias=True,
                output_bias=True,
                scale_channels=divisor**2 * (width // heads if config.scale_attn_weights else 1),
            ),
            feed_forward=mlp,
            norm_eps=config.layer_norm_epsilon,
            norm_type="layer_norm",
            mark=f"scores_over_{divisor}" if config.scale_attn_by_inverse_layer_idx else None,
        )

    return config.spec_of_model(
        name,
        map(layer, range(config.num_hidden_layers)),
        config.layer_norm_epsilon,
        norm_type="layer_norm",
        learned_positions=config.max_position_embeddings,
    )


def _activation(config: Config) -> Activation:
    """The activation of the MLP. Raises `NotModelledError` for one that it lacks; transformers' class may have it."""
    name, other = config.activation_function, config.hidden_act
    if other is not None and ACTIVATIONS.get(other, other) != ACTIVATIONS.get(name, name):
        raise ConfigError("hidden_act", other, f"activation_function is {name}")
    if name not in ACTIVATIONS:
        rule = f"has no module here, as {', '.join(ACTIVATIONS)} have; the counts come from transformers"
        raise NotModelledError("activation_function", name, rule)
    return ACTIVATIONS[name]
