"""Fields of published configs that a family does not declare, compared with the model that is built.

Some families always have a part, such as biases of queries, keys and values, and no field of theirs says so. A config
may say so all the same, and must say what is true: a field that is off, too, says that the model lacks the part.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from torch_models.errors import ConfigError
from torch_models.fields.known_fields import ACTIVATION_FIELDS
from torch_models.spec import (
    ClampedMLPSpec,
    GatedMLPSpec,
    GroupedQueryAttentionSpec,
    LayerSpec,
    MixtureOfExpertsSpec,
    MLPSpec,
    ModelSpec,
    MultiHeadLatentAttentionSpec,
)


class Part(StrEnum):
    """A part that some models have and others lack."""

    QKV_BIAS = "biases of queries, keys and values"
    OUTPUT_BIAS = "a bias of attention's output"
    MLP_BIAS = "biases of the feed-forward"
    ALL_BIASES = "biases of all projections"
    NORM_BIAS = "biases of norms"
    HEAD_BIAS = "a bias of the head"
    QK_NORM = "norms of queries and keys"
    NORM_BEFORE = "a norm before each block"
    NORM_AFTER = "a norm after each block"
    RMS_NORM = "norms by the root mean square"
    NORM_WEIGHTS = "weights of norms"
    FINAL_NORM = "a final norm"
    PARALLEL = "attention and feed-forward side by side"
    WINDOW = "a sliding window"
    ONE_KEY_HEAD = "one key and value head for all queries"
    LATENT = "multi-head latent attention"
    SINKS = "attention sinks"
    GATE = "a gate of attention's output"
    GATED_MLP = "a feed-forward with a gate"
    FEED_FORWARD = "a feed-forward in each layer"
    STATE_NORMS = "norms of a state space's steps, inputs and outputs"
    ADAPTERS = "adapters of layers that share their weights"
    EXPERTS = "routed experts"
    SHARED_EXPERTS = "shared experts"
    DENSE_LAYERS = "dense layers beside those of experts"
    ROTARY = "rotary positions"
    POSITION_TABLE = "a learned table of positions"
    ALIBI = "linear biases of distance"
    TIED = "tied embeddings"


# A part of a model -> the fields that say whether the model has it.
_FIELDS_OF_PARTS = {
    Part.QKV_BIAS: """
        qkv_bias use_qkv_bias add_qkv_bias attn_qkv_bias attention_bias attn_bias use_attn_bias use_attention_bias
        attention_qkv_bias
    """,
    Part.OUTPUT_BIAS: "attention_out_bias attention_output_bias o_proj_bias attn_out_bias out_proj_bias",
    Part.MLP_BIAS: "mlp_bias use_mlp_bias use_bias_in_mlp ffn_bias use_ffn_bias feed_forward_bias",
    Part.ALL_BIASES: "use_bias bias add_bias_linear linear_bias enable_bias use_linear_bias add_bias",
    Part.NORM_BIAS: "norm_bias use_norm_bias layer_norm_bias layernorm_bias",
    Part.HEAD_BIAS: "lm_head_bias head_bias use_lm_head_bias",
    Part.QK_NORM: """
        use_qk_norm qk_norm qk_layernorm use_qk_layernorm qk_layer_norm use_query_key_norm query_key_norm
    """,
    Part.NORM_BEFORE: "pre_norm do_layer_norm_before use_pre_norm prenorm",
    Part.NORM_AFTER: "post_norm use_post_norm sandwich_norm use_sandwich_norm post_layer_norm",
    Part.RMS_NORM: "use_rms_norm rms_norm use_rmsnorm rmsnorm",
    Part.NORM_WEIGHTS: "elementwise_affine norm_elementwise_affine layer_norm_elementwise_affine",
    Part.FINAL_NORM: "use_final_norm final_norm add_final_layer_norm do_final_layer_norm use_final_layernorm",
    Part.PARALLEL: """
        parallel_attn use_parallel_residual use_parallel_block parallel_block parallel_residual parallel_attention
    """,
    Part.WINDOW: "use_sliding_window use_sliding_window_attention use_swa",
    Part.ONE_KEY_HEAD: "multi_query multi_query_attention use_mqa",
    Part.LATENT: "use_mla attn_type_mla kv_lora_rank qk_nope_head_dim qk_rope_head_dim",
    Part.SINKS: """
        attention_sinks use_attention_sinks learnable_sink attn_sink use_sinks use_sink attention_sink
        add_full_attention_sink_bias add_swa_attention_sink_bias
    """,
    Part.GATE: """
        use_attention_gate attention_gate gating attn_output_gate use_output_gate head_wise_attn_gate
        elementwise_attn_output_gate use_head_wise_attn_gate use_gated_attention gated_attention
    """,
    Part.GATED_MLP: """
        gated_mlp use_gated_mlp use_gated_activation use_glu use_swiglu glu_mlp mlp_glu gated_linear_unit
        block_use_swiglu
    """,
    Part.FEED_FORWARD: "mamba_use_mlp",
    Part.STATE_NORMS: "mamba_inner_layernorms",
    Part.ADAPTERS: "use_shared_block_lora",
    Part.EXPERTS: """
        use_moe is_moe enable_moe_block use_mixture_of_experts num_experts num_local_experts n_routed_experts
        moe_num_experts n_experts num_routed_experts num_experts_per_tok num_experts_per_token moe_topk moe_k
        moe_top_k experts_per_token top_k_experts num_selected_experts moe_intermediate_size
        expert_intermediate_size moe_ffn_hidden_size expert_ffn_hidden_size
    """,
    Part.SHARED_EXPERTS: """
        n_shared_experts num_shared_experts moe_num_shared_experts num_shared_expert use_shared_expert
        use_shared_experts shared_expert_intermediate_size moe_shared_expert_intermediate_size
        shared_intermediate_size shared_experts_intermediate_size num_experts_shared
    """,
    Part.DENSE_LAYERS: """
        first_k_dense_replace num_dense_layers mlp_only_layers moe_layer_start_index dense_intermediate_size
        prefix_dense_intermediate_size
    """,
    Part.ROTARY: """
        rotary use_rotary use_rope use_rotary_pos_emb use_rotary_embeddings use_rotary_emb use_rotary_embedding
        use_rotary_position_embeddings use_pos_enc
    """,
    Part.POSITION_TABLE: """
        learned_pos_emb use_learned_position_embeddings use_position_embeddings use_positional_embedding
        use_absolute_position_embeddings
    """,
    Part.ALIBI: "alibi use_alibi",
    Part.TIED: "use_embedding_sharing share_embeddings tie_embeddings share_embedding",
}
SWITCHES = {field: part for part, fields in _FIELDS_OF_PARTS.items() for field in fields.split()}
# Fields that say the opposite: where one of them is off, the model has the part.
INVERTED = dict.fromkeys(("no_bias", "disable_bias", "without_bias", "remove_bias"), Part.ALL_BIASES)
INVERTED |= dict.fromkeys(("remove_final_layer_norm", "no_final_norm"), Part.FINAL_NORM)

_RMS = dict.fromkeys(("rms", "rms_norm", "rmsnorm", "RMSNorm"), (Part.RMS_NORM, True))
_NORMS = _RMS | dict.fromkeys(("layer_norm", "layernorm", "LayerNorm"), (Part.RMS_NORM, False))
_GATED_ACTIVATIONS = dict.fromkeys(("glu", "swiglu", "geglu", "reglu"), (Part.GATED_MLP, True))

# Fields with names for values -> each value, and what it says: a part, and whether the model has it.
NAMED_VALUES: dict[str, dict[str, tuple[Part, bool]]] = {
    "norm_type": _NORMS,
    "layernorm_type": _NORMS,
    "normalization": _NORMS,
    "normalization_function": _NORMS,
    "attention_method": {"MLA": (Part.LATENT, True)},
    "mlp_type": {"default": (Part.GATED_MLP, False), "gated": (Part.GATED_MLP, True), "swiglu": (Part.GATED_MLP, True)},
    "qk_norm_type": {"per_layer": (Part.QK_NORM, True)},
    "position_embedding_type": {
        **dict.fromkeys(("rope", "rotary", "rope_gptj"), (Part.ROTARY, True)),
        **dict.fromkeys(("absolute", "learned", "learned_absolute"), (Part.POSITION_TABLE, True)),
        "alibi": (Part.ALIBI, True),
    },
    **dict.fromkeys((*ACTIVATION_FIELDS, "hidden_act"), _GATED_ACTIVATIONS),
}


class _Statement(NamedTuple):
    """What a field says of a model."""

    part: Part
    has_it: bool


def parts_of_spec(spec: ModelSpec) -> dict[Part, bool]:
    """Return for each part whether all layers have it or none; a part that only some layers have is left out."""
    layers = [run.layer for run in spec.layer_runs]
    mixtures = [isinstance(layer.feed_forward, MixtureOfExpertsSpec) for layer in layers]
    every: dict[Part, list[bool]] = {
        part: [part in _parts_of_layer(layer) for layer in layers]
        for part in (
            Part.QKV_BIAS,
            Part.OUTPUT_BIAS,
            Part.MLP_BIAS,
            Part.QK_NORM,
            Part.NORM_BEFORE,
            Part.NORM_AFTER,
            Part.ONE_KEY_HEAD,
            Part.LATENT,
            Part.SINKS,
            Part.GATED_MLP,
            Part.ROTARY,
        )
    }
    every[Part.ALL_BIASES] = [bias for part in (Part.QKV_BIAS, Part.OUTPUT_BIAS, Part.MLP_BIAS) for bias in every[part]]
    parts = unanimous(every)
    parts[Part.FINAL_NORM] = True
    if not any(_has_norm_without_weight(layer) for layer in layers):
        parts[Part.NORM_WEIGHTS] = True
    parts |= dict.fromkeys((Part.HEAD_BIAS, Part.PARALLEL, Part.GATE, Part.ALIBI), False)
    parts |= {Part.FEED_FORWARD: True, Part.STATE_NORMS: False, Part.ADAPTERS: False}
    parts[Part.POSITION_TABLE] = spec.learned_positions is not None
    parts[Part.NORM_BIAS] = spec.norm_type == "layer_norm"
    parts[Part.RMS_NORM] = spec.norm_type == "rms_norm"
    if any(map(_has_indexer, layers)):
        del parts[Part.NORM_BIAS], parts[Part.RMS_NORM]  # the keys of an indexer have a LayerNorm
    parts[Part.WINDOW] = any(layer.window is not None for layer in layers)
    parts[Part.EXPERTS] = any(mixtures)
    parts[Part.SHARED_EXPERTS] = any(Part.SHARED_EXPERTS in _parts_of_layer(layer) for layer in layers)
    parts[Part.DENSE_LAYERS] = any(mixtures) and not all(mixtures)
    parts[Part.TIED] = spec.tie_word_embeddings
    return parts


def _has_indexer(layer: LayerSpec) -> bool:
    return isinstance(layer.attention, MultiHeadLatentAttentionSpec) and layer.attention.indexer is not None


def _parts_of_layer(layer: LayerSpec) -> set[Part]:
    attention, feed_forward = layer.attention, layer.feed_forward
    placement = layer.norm_placement
    found = {
        Part.NORM_BEFORE: placement != "after",
        Part.NORM_AFTER: placement != "before",
        Part.GATED_MLP: not isinstance(feed_forward, MLPSpec),
        Part.ROTARY: attention.rotary is not None,
    }
    if isinstance(attention, GroupedQueryAttentionSpec):
        found |= {
            Part.QKV_BIAS: attention.qkv_bias,
            Part.OUTPUT_BIAS: attention.output_bias,
            Part.SINKS: attention.sinks,
        }
        found[Part.QK_NORM] = attention.query_key_norm is not None
        found[Part.ONE_KEY_HEAD] = attention.num_key_value_heads == 1 < attention.num_attention_heads
    elif isinstance(attention, MultiHeadLatentAttentionSpec):
        found |= {Part.QKV_BIAS: attention.bias, Part.OUTPUT_BIAS: attention.bias, Part.LATENT: True}
    mlp: GatedMLPSpec | MLPSpec | ClampedMLPSpec
    if isinstance(feed_forward, MixtureOfExpertsSpec):
        mlp = feed_forward.expert
        found[Part.SHARED_EXPERTS] = feed_forward.shared_experts is not None
    else:
        mlp = feed_forward
    found[Part.MLP_BIAS] = isinstance(mlp, ClampedMLPSpec) or mlp.bias
    return {part for part, has_it in found.items() if has_it}


def _has_norm_without_weight(layer: LayerSpec) -> bool:
    attention = layer.attention
    return isinstance(attention, GroupedQueryAttentionSpec) and (
        attention.query_key_norm == "l2" or attention.value_norm
    )


def unanimous(found: Mapping[Part, Iterable[bool]]) -> dict[Part, bool]:
    """Return the parts of which all that was found says the same."""
    agreed = {part: set(each) for part, each in found.items()}
    return {part: each.pop() for part, each in agreed.items() if len(each) == 1}


def check_switches(switches: Mapping[str, Any], parts: Mapping[Part, bool]) -> None:
    """Raise `ConfigError` for a field that says another thing than the model that is built has.

    A part that `parts` leaves out is in some layers, or cannot be told: then no field about it is accepted.
    """
    for field, value in switches.items():
        said = statement(field, value)
        if said is None:
            continue
        if said.part not in parts:
            rule = f"speaks of {said.part}, which the model that is built has in some places only, or may have"
            raise ConfigError(field, value, rule)
        built = parts[said.part]
        if built != said.has_it:
            rule = f"the model is built {'with' if built else 'without'} {said.part}, whatever this field says"
            raise ConfigError(field, value, rule)


def statement(field: str, value: object) -> _Statement | None:
    """Return what the field says of a part of the model, or None if it says nothing of one."""
    if isinstance(value, str) and value in NAMED_VALUES.get(field, ()):
        return _Statement(*NAMED_VALUES[field][value])
    if isinstance(value, bool):
        is_on = value
    elif value is not None and not value:  # a number of 0, or an empty list
        is_on = False
    else:
        return None
    if field in INVERTED:
        return _Statement(INVERTED[field], not is_on)
    return _Statement(SWITCHES[field], is_on) if field in SWITCHES else None


def is_switch(field: str, value: object) -> bool:
    """Whether the field says that the model has one of the parts, or that it has not."""
    return statement(field, value) is not None


def check_layer_types(given: Any, spec: ModelSpec) -> None:
    """Raise `ConfigError` if `layer_types`, in a family that does not declare it, names other layers than are built."""
    built = ["full_attention" if layer.window is None else "sliding_attention" for layer in spec.layers]
    if given is not None and given != built:
        rule = f"describes layers of several kinds, which are not modelled for {spec.model_type}"
        raise ConfigError("layer_types", given, rule)
