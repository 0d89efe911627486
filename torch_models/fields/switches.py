"""Switches of published configs that a family does not declare, compared with the model that is built.

Some families always have a part, such as biases of queries, keys and values, and no field of theirs says so. A config
may say so all the same, and must say what is true.
"""

from collections.abc import Mapping
from typing import Any

from torch_models.errors import ConfigError
from torch_models.spec import GatedMLPSpec, GroupedQueryAttentionSpec, ModelSpec

# A part of a model -> the fields that say whether the model has it.
_FIELDS_OF_PARTS = {
    "biases of queries, keys and values": "qkv_bias use_qkv_bias add_qkv_bias attn_qkv_bias",
    "biases of the feed-forward": "mlp_bias use_mlp_bias use_bias_in_mlp",
    "norms of queries and keys": "use_qk_norm qk_norm qk_layernorm use_qk_layernorm qk_layer_norm",
    "a sliding window": "use_sliding_window",
}
SWITCHES = {field: part for part, fields in _FIELDS_OF_PARTS.items() for field in fields.split()}
QKV_BIAS, MLP_BIAS, QK_NORM, WINDOW = _FIELDS_OF_PARTS


def parts_of_spec(spec: ModelSpec) -> dict[str, bool]:
    """Return for each part whether all layers have it or none; a part that only some layers have is left out."""
    parts: dict[str, set[bool]] = {part: set() for part in _FIELDS_OF_PARTS}
    for run in spec.layer_runs:
        attention, feed_forward = run.layer.attention, run.layer.feed_forward
        if isinstance(attention, GroupedQueryAttentionSpec):
            parts[QKV_BIAS].add(attention.qkv_bias)
            parts[QK_NORM].add(attention.query_key_norm is not None)
        else:
            parts[QKV_BIAS].add(attention.bias)
        if isinstance(feed_forward, GatedMLPSpec):
            parts[MLP_BIAS].add(feed_forward.bias)
        parts[WINDOW].add(run.layer.window is not None)
    return {part: found.pop() for part, found in parts.items() if len(found) == 1}


def check_switches(switches: Mapping[str, Any], parts: Mapping[str, bool]) -> None:
    """Raise `ConfigError` for a switch that says another thing than the model that is built has."""
    for field, value in switches.items():
        if not is_switch(field, value):
            continue
        built = parts.get(SWITCHES[field], False)
        if built != value and not (SWITCHES[field] not in parts and not value):
            rule = f"the model is built {'with' if built else 'without'} {SWITCHES[field]}, whatever this field says"
            raise ConfigError(field, value, rule)


def is_switch(field: str, value: object) -> bool:
    """Whether the field says that the model has one of the parts, or that it has not."""
    return field in SWITCHES and isinstance(value, bool)


def check_layer_types(given: Any, spec: ModelSpec) -> None:
    """Raise `ConfigError` if `layer_types`, in a family that does not declare it, names other layers than are built."""
    built = ["full_attention" if layer.window is None else "sliding_attention" for layer in spec.layers]
    if given is not None and given != built:
        rule = f"describes layers of several kinds, which are not modelled for {spec.model_type}"
        raise ConfigError("layer_types", given, rule)
