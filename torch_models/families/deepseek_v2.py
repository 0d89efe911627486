"""DeepSeek-V2 and V2-Lite (arXiv 2405.04434): multi-head latent attention, and a softmax router.

With ``group_limited_greedy`` (§2.2.2) only the groups with the best single experts are eligible; with ``greedy``
(V2-Lite) all are. The weights of the chosen experts are scaled, but not normalised.
"""

from typing import Annotated, Literal

from msgspec import Meta

from torch_models.errors import ConfigError
from torch_models.fields.latent_attention import LatentAttentionConfig, latent_attention
from torch_models.fields.shared import dense_then_moe, gated_mlp, mixture_with_shared_experts, softmax_router
from torch_models.spec import (
    Experts,
    Layers,
    LayerSpec,
    MixtureOfExpertsSpec,
    ModelSpec,
    Positive,
    Width,
)


class Config(LatentAttentionConfig, frozen=True, kw_only=True):
    """The fields of a `DeepseekV2ForCausalLM` config; fields that determine a shape have no default."""

    rope_interleave: Literal[True] = True
    moe_intermediate_size: Width
    n_routed_experts: Experts
    n_shared_experts: Annotated[int, Meta(ge=0, le=1024)] | None
    num_experts_per_tok: Experts
    topk_method: Literal["greedy", "group_limited_greedy"]
    n_group: Experts | None = None
    topk_group: Experts | None = None
    first_k_dense_replace: Annotated[int, Meta(ge=0)]
    moe_layer_freq: Layers = 1
    norm_topk_prob: Literal[False] = False  # as in every published V2
    routed_scaling_factor: Positive = 1.0
    scoring_func: Literal["softmax"] = "softmax"
    mlp_bias: Literal[False] = False


def model_spec(config: Config, name: str) -> ModelSpec:
    """Return the spec of a DeepSeek-V2 config: `first_k_dense_replace` dense layers, then mixtures of experts."""
    attention = latent_attention(config)
    dense = LayerSpec(attention=attention, feed_forward=gated_mlp(config), norm_eps=config.rms_norm_eps)
    moe = LayerSpec(attention=attention, feed_forward=_mixture(config), norm_eps=config.rms_norm_eps)
    return config.model_spec(name, dense_then_moe(config, dense, moe, config.moe_layer_freq))


def _mixture(config: Config) -> MixtureOfExpertsSpec:
    n_group, topk_group = 1, 1
    if config.topk_method == "group_limited_greedy":
        if config.n_group is None or config.topk_group is None:
            raise ConfigError("topk_method", config.topk_method, "needs n_group and topk_group")
        n_group, topk_group = config.n_group, config.topk_group
    router = softmax_router(
        config,
        config.n_routed_experts,
        norm_topk_prob=False,
        group_rank_experts=1,
        n_group=n_group,
        topk_group=topk_group,
        routed_scaling_factor=config.routed_scaling_factor,
    )
    return mixture_with_shared_experts(config, router)
