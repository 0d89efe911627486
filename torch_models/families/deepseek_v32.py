"""DeepSeek-V3.2 (arXiv 2512.02556, §2.1): DeepSeek-V3 with sparse attention.

In each layer an indexer chooses the keys that each query attends to. Its rotated pairs of channels are (c, c + C / 2),
those of the attention (2 c, 2 c + 1), as in transformers and DeepSeek's own code.
"""

from typing import Literal

from torch_models.errors import ConfigError
from torch_models.families import deepseek_v3
from torch_models.fields.latent_attention import latent_attention
from torch_models.fields.shared import dense_then_moe, gated_mlp, sigmoid_mixture
from torch_models.spec import Heads, IndexerSpec, LayerSpec, ModelSpec, SequenceLength, Width

SPARSE_ATTENTION = "indexed_attention"  # transformers' name of the attention in `layer_types`
MLP_TYPES = ("dense", "sparse")


class Config(deepseek_v3.Config, frozen=True, kw_only=True):
    """The fields of a `DeepseekV32ForCausalLM` config: DeepSeek-V3's and those of the indexer."""

    index_n_heads: Heads
    index_head_dim: Width
    index_topk: SequenceLength
    rope_interleave: Literal[True] = True
    moe_layer_freq: Literal[1] = 1
    layer_types: list[str] | None = None
    mlp_layer_types: list[str] | None = None  # of each layer: dense, or a mixture of experts


def model_spec(config: Config, name: str) -> ModelSpec:
    """Return the spec of a DeepSeek-V3.2 config."""
    return sparse_model_spec(config, name, interleaved=False)


def sparse_model_spec(config: Config, name: str, *, interleaved: bool) -> ModelSpec:
    """Return DeepSeek-V3's layers with an indexer in each, which rotates `interleaved` pairs of channels or others."""
    check_all("layer_types", config.layer_types, config.num_hidden_layers, SPARSE_ATTENTION)
    attention = latent_attention(
        config,
        IndexerSpec(
            num_heads=config.index_n_heads,
            head_dim=config.index_head_dim,
            top_k=config.index_topk,
            interleaved=interleaved,
        ),
    )
    dense = LayerSpec(attention=attention, feed_forward=gated_mlp(config), norm_eps=config.rms_norm_eps)
    moe = LayerSpec(attention=attention, feed_forward=sigmoid_mixture(config), norm_eps=config.rms_norm_eps)
    layers = dense_then_moe(config, dense, moe)
    if config.mlp_layer_types is not None:
        layers = [dense if kind == "dense" else moe for kind in mlp_types(config, config.mlp_layer_types)]
    return config.model_spec(name, layers=layers, mtp_layers=[moe] * config.num_nextn_predict_layers)


def mlp_types(config: Config, given: list[str]) -> list[str]:
    """Return `mlp_layer_types`; raise `ConfigError` unless it names a known kind for each layer."""
    if len(given) != config.num_hidden_layers:
        rule = f"must name {config.num_hidden_layers} layers, as many as num_hidden_layers"
        raise ConfigError("mlp_layer_types", len(given), rule)
    if unknown := sorted(set(given) - set(MLP_TYPES)):
        raise ConfigError("mlp_layer_types", unknown[0], f"is not known; must be {' or '.join(MLP_TYPES)}")
    return given


def check_all(field: str, given: list[str] | None, layers: int, kind: str) -> None:
    """Raise `ConfigError` if a list with a kind for each layer has another number or another kind."""
    if given is None:
        return
    if len(given) != layers:
        raise ConfigError(field, len(given), f"must name {layers} layers, as many as num_hidden_layers")
    if others := sorted(set(given) - {kind}):
        raise ConfigError(field, others[0], f"must be {kind} in every layer; other kinds are not modelled")
