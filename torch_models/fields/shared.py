"""Specs from fields that several families share: attention, the gated MLP, experts, windows of layers."""

from collections.abc import Callable
from typing import Any

from torch_models.errors import ConfigError
from torch_models.fields.family_config import FamilyConfig
from torch_models.fields.rope import rotary_spec
from torch_models.spec import (
    Activation,
    GatedMLPSpec,
    GroupedQueryAttentionSpec,
    LayerSpec,
    MixtureOfExpertsSpec,
    RouterSpec,
    check_width,
)

FULL, SLIDING = "full_attention", "sliding_attention"


def grouped_query_attention(
    config: FamilyConfig,
    *,
    qkv_bias: bool = False,
    output_bias: bool = False,
    rotates: bool = True,
    rotary_share: float = 1.0,
    **options: Any,
) -> GroupedQueryAttentionSpec:
    """Return the attention spec of a config; `options` are further fields of the spec.

    `rotary_share` is the share of the channels of each head, counted from the first, that are rotated; without
    `rotates` a layer has no positions.
    """
    heads = config.num_attention_heads
    if config.head_dim is None and config.hidden_size % heads:
        raise ConfigError(
            "num_attention_heads",
            heads,
            f"hidden_size ({config.hidden_size}) must be divisible by num_attention_heads ({heads})",
        )
    head_dim = config.head_dim or config.hidden_size // heads
    return GroupedQueryAttentionSpec(
        hidden_size=config.hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=config.num_key_value_heads or heads,
        head_dim=head_dim,
        rotary=rotary_spec(
            config,
            int(head_dim * rotary_share),
            size=_name_of_rotated(config, rotary_share),
            layer_type=FULL if options.get("window") is None else SLIDING,
        )
        if rotates
        else None,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        norm_eps=config.rms_norm_eps,
        **options,
    )


def _name_of_rotated(config: FamilyConfig, rotary_share: float) -> str:
    size = "hidden_size / num_attention_heads" if config.head_dim is None else "head_dim"
    return size if rotary_share == 1 else f"{size} * partial_rotary_factor"


def gated_mlp(
    config: FamilyConfig,
    intermediate_size: int | None = None,
    *,
    activation: Activation | None = None,
    bias: bool = False,
) -> GatedMLPSpec:
    """Return the MLP spec of a config; `intermediate_size` and `activation` replace the config's values if given."""
    return GatedMLPSpec(
        hidden_size=config.hidden_size,
        intermediate_size=intermediate_size or config.intermediate_size,
        activation=activation or config.hidden_act,
        bias=bias,
    )


def window_by_layer(config: Any, window: int | None, is_local: Callable[[int], bool]) -> list[int | None]:
    """Return each layer's window or None: by `layer_types` if the config has it, else by `is_local(index)`."""
    types = config.layer_types
    total = config.num_hidden_layers
    if types is None:
        return [window if is_local(index) else None for index in range(total)]
    unknown = set(types) - {FULL, SLIDING}
    if unknown:
        raise ConfigError("layer_types", sorted(unknown)[0], f"is not known; must be {FULL} or {SLIDING}")
    if len(types) != total:
        raise ConfigError("layer_types", len(types), f"must name {total} layers, as many as num_hidden_layers")
    if SLIDING in types and getattr(config, "use_sliding_window", True) is False:
        raise ConfigError("use_sliding_window", False, f"must be true, since layer_types has {SLIDING}")
    if window is None and SLIDING in types:
        raise ConfigError("sliding_window", None, f"must be given, since layer_types has {SLIDING}")
    return [window if kind == SLIDING else None for kind in types]


def is_sparse(config: Any, index: int) -> bool:
    """Whether a layer of a Qwen model is a mixture of experts: every `decoder_sparse_step`-th, if not kept dense."""
    return index not in (config.mlp_only_layers or ()) and (index + 1) % config.decoder_sparse_step == 0


def softmax_router(config: Any, num_experts: int, *, norm_topk_prob: bool, **options: Any) -> RouterSpec:
    """Return a router that weighs the chosen experts by the softmax over all experts.

    `options` are further fields of the spec. Without options all experts are one group, and weights are not scaled.
    """
    plain = {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0}
    return RouterSpec(
        hidden_size=config.hidden_size,
        num_experts=num_experts,
        top_k=config.num_experts_per_tok,
        scoring="softmax",
        norm_topk_prob=norm_topk_prob,
        correction_bias=False,
        **plain | options,
    )


def sigmoid_mixture(config: Any) -> MixtureOfExpertsSpec:
    """Return DeepSeek-V3's mixture (arXiv 2412.19437, §2.1.2): sigmoid scores, groups, a correction bias."""
    router = RouterSpec(
        hidden_size=config.hidden_size,
        num_experts=config.n_routed_experts,
        top_k=config.num_experts_per_tok,
        scoring="sigmoid",
        n_group=config.n_group,
        topk_group=config.topk_group,
        norm_topk_prob=config.norm_topk_prob,
        routed_scaling_factor=config.routed_scaling_factor,
        correction_bias=True,
    )
    return mixture_with_shared_experts(config, router)


def mixture_with_shared_experts(config: Any, router: RouterSpec) -> MixtureOfExpertsSpec:
    """Return routed experts and `n_shared_experts` shared experts, all of `moe_intermediate_size`."""
    return MixtureOfExpertsSpec(
        router=router,
        expert=gated_mlp(config, config.moe_intermediate_size),
        shared_experts=shared_experts(config, config.n_shared_experts, config.moe_intermediate_size),
    )


def shared_experts(config: FamilyConfig, count: int | None, intermediate_size: int) -> GatedMLPSpec | None:
    """Return all shared experts as one wide MLP, or None if there are none."""
    width = (count or 0) * intermediate_size
    check_width("n_shared_experts * moe_intermediate_size", width)
    return gated_mlp(config, width) if width else None


def dense_then_moe(config: Any, dense: LayerSpec, moe: LayerSpec, every: int = 1) -> list[LayerSpec]:
    """Return the layers of a model with dense layers first, then mixtures of experts.

    The first `first_k_dense_replace` layers are dense. A later layer is `moe` if its index in the model is a multiple
    of `every`, otherwise `dense`. Raises `ConfigError` if the model has fewer layers than `first_k_dense_replace`.
    """
    total, first = config.num_hidden_layers, config.first_k_dense_replace
    if first > total:
        raise ConfigError("first_k_dense_replace", first, f"must be at most num_hidden_layers ({total})")
    return [moe if index >= first and index % every == 0 else dense for index in range(total)]
