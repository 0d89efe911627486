"""GLM-5 (zai-org): DeepSeek-V3.2's architecture in other sizes; the indexer rotates pairs (2 c, 2 c + 1).

Models in which layers share the indexer of a layer before (arXiv 2603.12201) are refused.
"""

from typing import Literal

from torch_models.errors import ConfigError
from torch_models.families import deepseek_v32
from torch_models.families.deepseek_v32 import check_all, sparse_model_spec
from torch_models.spec import Epsilon, Layers, ModelSpec

OWN_INDEXER = "full"


class Config(deepseek_v32.Config, frozen=True, kw_only=True):
    """The fields of a `GlmMoeDsaForCausalLM` config: DeepSeek-V3.2's and those of shared indexers."""

    rms_norm_eps: Epsilon = 1e-5
    indexer_rope_interleave: Literal[True] = True
    indexer_types: list[str] | None = None  # of each layer: full, or shared
    index_topk_freq: Layers | None = None  # layers with one indexer
    index_topk_pattern: str | list[str] | None = None
    index_skip_topk_offset: int | None = None


def model_spec(config: Config, name: str) -> ModelSpec:
    """Return the spec of a GLM-5 config; raise `ConfigError` if layers share an indexer."""
    rule = "layers that share the indexer of a layer before are not modelled: every layer must have its own"
    if config.indexer_types is not None:
        if "shared" in config.indexer_types:
            raise ConfigError("indexer_types", "shared", rule)
        check_all("indexer_types", config.indexer_types, config.num_hidden_layers, OWN_INDEXER)
    else:
        if config.index_topk_pattern is not None and set(config.index_topk_pattern) - {"F", OWN_INDEXER}:
            raise ConfigError("index_topk_pattern", config.index_topk_pattern, rule)
        if config.index_topk_pattern is None and config.index_topk_freq not in (None, 1):
            raise ConfigError("index_topk_freq", config.index_topk_freq, rule)
    return sparse_model_spec(config, name, interleaved=True)
