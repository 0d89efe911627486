"""The fields of a config that transformers reads: their names, and the fields that do not change any count.

A configuration class accepts fields that it does not declare. It converts such a field, reads it, or only stores it.
Fields that are only stored fall under the rule of `torch_models.fields.unknown_fields`: they are passed over and
listed, or refused, because they may or may not change the model.
"""

import dataclasses
import inspect
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch_models.errors import ConfigError, show_value
from torch_models.fields.architecture_fields import ARCHITECTURE_FIELDS
from torch_models.fields.config import part_of_a_family
from torch_models.fields.known_fields import (
    ACTIVATION_FIELDS,
    ACTIVATIONS,
    ALIASES,
    COUNT_FREE_FIELDS,
    DROPOUT,
    EXPERT_COUNTS,
    IMAGES_ALONE,
    LATENT_HEAD_SIZES,
    LAYER_DROP,
    OF_IMAGES,
    ROTATED_SHARES,
    TURNING,
    irrelevance,
)
from torch_models.fields.switches import is_switch
from torch_models.fields.unknown_fields import (
    AS_BUILT,
    NO_WINDOW,
    SortedFields,
    check_fixed,
    common_reason,
    is_comment,
    show_field,
    sort_fields,
    unused_window,
    without_comments,
)

_WINDOWS = ARCHITECTURE_FIELDS["sliding_window"]
_DROPOUT_IN_STEP = "is a setting of training: it multiplies no matrices, and what is measured in training mode has it"
_MTP = "multi-token prediction is not in the built model; the report notes this"
MTP_FIELDS = re.compile(
    r"use_mtp|num_nextn_predict_layers|num_mtp_(layers|modules|heads)|mtp_config"
    r"|mtp_(num_layers|num_hidden_layers|transformer_layers|layer_types|layers_block_type|hybrid_override_pattern"
    r"|use_dedicated_embeddings)"
)

# Undeclared fields of published configs, with the one value that matches the model that transformers builds.
FIXED_FOREIGN_FIELDS: dict[str, object] = {
    "apply_residual_connection_post_layernorm": False,
    "mla_use_nope": True,
    "moe_gate": "topk",
    "output_gate_type": "swish",
    "scale_attn_weights": True,
    "zero_expert_type": "identity",
}

_STANDARD_NAMES = ALIASES | {"torch_dtype": "dtype"}  # the reverse of published files

# The types of rotary embedding that transformers' code computes on the meta device; others would need numbers.
_ROPE_TYPES = {"default", "linear", "yarn", "llama3", "longrope", "proportional"}
_ROPE_TYPES_OF = {"phimoe": {"default"}}  # families whose code reads the positions for every other type
_SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "hidden_act", "sliding_window", "use_sliding_window"),
    *("expand", "conv_L_cache", "adapter_rank", "mamba_num_heads"),
)
# A family -> fields that its class does not declare and the code of its modules reads.
_READ_BY_MODULES = {"falcon_h1": {"head_dim"}}


def declared_fields(config_class: Any) -> set[str]:
    """The fields that a configuration class declares, including inherited ones."""
    return {field.name for field in dataclasses.fields(config_class)}


def value_of(field: str, config: Any) -> Any:
    """The value of a config's field; None if it has no such field, or if the value differs per layer and raises."""
    try:
        return getattr(config, field, None)
    except RuntimeError:
        return None


def under_own_names(fields: Mapping[str, Any], config_class: Any) -> dict[str, Any]:
    """The fields under the names of the class, whichever name the file uses, without comments.

    Raises `ConfigError` if two names of one field have different values.
    """
    renamed: dict[str, Any] = {}
    given_as: dict[str, str] = {}
    declared = declared_fields(config_class)
    for field, value in fields.items():
        if is_comment(field) and field not in declared:
            continue
        own = own_name(field, config_class)
        if own in renamed and renamed[own] != value:
            rule = f"is another name of {given_as[own]}, which is {show_value(fields[given_as[own]])}"
            raise ConfigError(field, value, rule)
        renamed[own], given_as[own] = without_comments({own: value}).get(own, value), field
    old, new = renamed.get("rope_scaling"), renamed.get("rope_parameters")
    if old and new and old != new:
        raise ConfigError("rope_scaling", old, f"is another name of rope_parameters, which is {show_value(new)}")
    return renamed


def own_name(field: str, config_class: Any) -> str:
    """The class's name of a field, by the class's table of names, then by ours; if in neither, the field itself."""
    declared = declared_fields(config_class)
    own_names: dict[str, str] = config_class.attribute_map
    others: tuple[str, ...] = EXPERT_COUNTS if field in EXPERT_COUNTS else (_STANDARD_NAMES.get(field, field),)
    if field in ALIASES and field not in own_names and field in _names_read(config_class):
        return field  # the class itself reads the other name
    for name in (field, *others):
        if name in own_names and not (name in declared and own_names[name] not in declared):
            return own_names[name]
        if name in declared:
            return name
    return field


def passed_on(fields: Mapping[str, Any], config_class: Any, ignore_fields: Sequence[str]) -> dict[str, Any]:
    """The fields for the class: without those to be ignored, storage, the form of outputs, and unused windows."""
    left_out = {"dtype", "quantization_config", "return_dict", *ignore_fields}
    left_out |= {field for field in fields if unused_window(field, fields)} - declared_fields(config_class)
    return {field: value for field, value in fields.items() if field not in left_out}


def with_known_rope(fields: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The fields with rotary types that transformers computes on the meta device, and those that were replaced.

    Angles change no count, so a type that it does not know, or that needs numbers, is replaced by the default.
    """
    replaced: list[str] = []
    types = _ROPE_TYPES_OF.get(fields.get("model_type", ""), _ROPE_TYPES)

    def known(path: str, entry: Any) -> Any:
        if not isinstance(entry, dict):
            return entry
        if not entry.keys() & {"rope_type", "type"}:
            return {key: known(f"{path}.{key}", inner) for key, inner in entry.items()}
        given = entry.get("rope_type", entry.get("type"))
        if given in types or given is None:
            return entry
        replaced.append(f"{path}.rope_type = {show_value(given)} ({TURNING}; measured with another type)")
        kept = {key: value for key, value in entry.items() if key not in ("rope_type", "type")}
        same = given == "su" and "short_factor" in kept and "longrope" in types
        return kept | {"rope_type": "longrope" if same else "default"}

    names = ("rope_scaling", "rope_parameters")
    return {field: known(field, value) if field in names else value for field, value in fields.items()}, replaced


def check_fields(fields: Mapping[str, Any], config: Any, ignore_fields: Sequence[str] = ()) -> SortedFields:
    """The fields that have no part in `config`, which transformers made from `fields` without those to be ignored.

    Raises `ConfigError` for a field that the class ignores or only stores and that may change the model, with both
    values if the class derives another one; `ArgumentError` for a name in `ignore_fields` that cannot be ignored.
    """
    class_name, declared = type(config).__name__, declared_fields(type(config))
    read, own = set(_names_read(type(config))), _READ_BY_MODULES.get(config.model_type, set())
    sizes = sizes_of(config)
    windows = {"use_sliding_window": value_of("use_sliding_window", config)}
    has_windows = any(ARCHITECTURE_FIELDS.get(name) == _WINDOWS and value_of(name, config) for name in declared)
    overwritten = []
    for field, value in fields.items():
        if field in declared and field == "use_bidirectional_attention" and value == IMAGES_ALONE:
            overwritten.append(f"{show_field(field, value)} ({OF_IMAGES})")
            continue
        if field not in declared or field not in ("is_decoder", "causal"):
            check_fixed(field, value)
        if field in declared and not irrelevance(field) and field not in ignore_fields:
            why = _overwritten(field, {**fields, **windows}, config)
            overwritten += [f"{show_field(field, value)} ({why})"] if why else []

    def understood(field: str) -> bool:
        if field in declared | own or field == "model_type" or (field in read and _has_effect(field, fields, config)):
            return field in ignore_fields or irrelevance(field) != DROPOUT  # of a rate of dropout, its part is said
        if field in ignore_fields or irrelevance(field) or unused_window(field, fields):
            return False
        return value_of(field, config) is None and fields[field] is not None  # the class has converted it

    def reason(field: str, value: Any) -> str | None:
        if is_switch(field, value):
            return AS_BUILT  # compared with the model once it is built
        if MTP_FIELDS.fullmatch(field):
            return _MTP
        if irrelevance(field) == DROPOUT and field not in LAYER_DROP and (field in declared or field in read):
            return _DROPOUT_IN_STEP
        if field in FIXED_FOREIGN_FIELDS and value is not None:
            if value != FIXED_FOREIGN_FIELDS[field]:
                rule = f"must be {show_value(FIXED_FOREIGN_FIELDS[field])}: transformers builds nothing else"
                raise ConfigError(field, value, rule)
            return AS_BUILT
        if _names_activation(field, value):
            return ACTIVATIONS[value]
        if field in ROTATED_SHARES:
            return TURNING
        if field == "layer_types" and has_windows:
            return None
        if _repeats_layers(field, value, config):
            return "repeats what transformers derives"
        why = common_reason(field, value, fields, sizes)
        return why or _derived(field, fields, config)

    found = sort_fields(
        fields,
        understood,
        reason=reason,
        refusal=lambda field: f"and transformers' {class_name} has no such field",
        of_a_family=part_of_a_family,
        declared={name: value_of(name, config) for name in declared},
        ignore_fields=ignore_fields,
    )
    return SortedFields((*found.passed_over, *overwritten), found.ignored)


def sizes_of(config: Any) -> dict[str, Any]:
    """The sizes that the class itself has; any other field of a config is only what the file says."""
    kind = type(config)
    sizes = {name: value_of(name, config) for name in _SIZES if name in kind.attribute_map or hasattr(kind, name)}
    if value_of("new_decoder_architecture", config) and hasattr(kind, "num_kv_heads"):
        sizes["num_key_value_heads"] = value_of("num_kv_heads", config)
    elif hasattr(kind, "multi_query") and value_of("multi_query", config):
        sizes["num_key_value_heads"] = 1
    return sizes


def undeclared_switches(fields: Mapping[str, Any], config: Any) -> dict[str, bool]:
    """The fields that say whether the model has one of its parts and that its class does not declare."""
    declared = declared_fields(type(config))
    return {field: value for field, value in fields.items() if is_switch(field, value) and field not in declared}


def _names_read(config_class: Any) -> Iterator[str]:
    """Names that a class reads without declaring them, such as older names: all strings in what makes it."""
    from transformers import PreTrainedConfig

    for owner in config_class.__mro__[: config_class.__mro__.index(PreTrainedConfig)]:
        for name in ("__post_init__", "convert_rope_params_to_dict"):
            own = vars(owner).get(name)
            code = getattr(inspect.unwrap(own), "__code__", None) if own else None
            yield from _strings(code) if code else ()


def _strings(code: types.CodeType) -> Iterator[str]:
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, types.CodeType):
            yield from _strings(constant)


def _derived_without(field: str, fields: Mapping[str, Any], config: Any) -> Any:
    """The value that the class derives for the field if the config does not have it; None if there is none."""
    try:
        rebuilt = type(config)(**{name: value for name, value in fields.items() if name != field})
    except Exception:  # transformers' own checks may raise any exception
        return None
    return value_of(field, rebuilt)


def _has_effect(field: str, fields: Mapping[str, Any], config: Any) -> bool:
    """Whether a field that the class does not declare changes what it makes of the others, or would with another value.

    The strings in a class's code include names that it reads elsewhere, as in an inner object.
    """

    def made(own: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            values: dict[str, Any] = type(config)(**passed_on(own, type(config), ())).to_dict()
        except Exception:  # transformers' own checks may raise any exception
            return None
        return values

    def of_others(values: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if values is None else {name: value for name, value in values.items() if name != field}

    given, left_out = made(fields), made({name: value for name, value in fields.items() if name != field})
    if given is None:
        return False
    # Without it the class may not even accept the others; it may also write the same value of its own accord.
    if (
        left_out is None
        or of_others(given) != of_others(left_out)
        or (field in left_out and left_out[field] == fields[field])
    ):
        return True
    others = (of_others(made({**fields, field: other})) for other in _other_values(fields[field]))
    return any(other not in (None, of_others(given)) for other in others)


def _other_values(value: Any) -> tuple[Any, ...]:
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int | float):
        return value + 1, value * 2
    return (value[:-1], value[:1]) if isinstance(value, list) else ()


def _overwritten(field: str, fields: Mapping[str, Any], config: Any) -> str | None:
    """Why a declared field has no effect, or None; the class overwrites it with a derived value.

    Raises `ConfigError` where that may change a count, because the user's value is ignored.
    """
    value, made = fields[field], value_of(field, config)
    if not isinstance(value, bool | int | float | str) or made in (None, value):
        return NO_WINDOW if made is None and value is not None and unused_window(field, fields) else None
    default = {one.name: one.default for one in dataclasses.fields(config)}[field]
    if value == default or made != _derived_without(field, fields, config):
        return None
    rule = f"transformers' {type(config).__name__} makes it {show_value(made)} whatever is given"
    of_latent_attention = field == "head_dim" and value_of("kv_lora_rank", config) is not None
    repeats = of_latent_attention and value in [value_of(size, config) for size in LATENT_HEAD_SIZES]
    count_free = field in COUNT_FREE_FIELDS or field in ROTATED_SHARES or _names_activation(field, value)
    if repeats or unused_window(field, fields) or count_free:
        return rule
    raise ConfigError(field, value, rule)


def _names_activation(field: str, value: Any) -> bool:
    """Whether the field names an activation of one number, which adds no matrix to the feed-forward."""
    return field in (*ACTIVATION_FIELDS, "hidden_act") and isinstance(value, str) and value in ACTIVATIONS


def _repeats_layers(field: str, value: Any, config: Any) -> bool:
    """Whether the field says in other words which layers are sparse, or have a window, in the config that is built."""
    mlps, mixers = value_of("mlp_layer_types", config) or [], value_of("layer_types", config) or []
    if field in ("first_k_dense_replace", "num_dense_layers") and isinstance(value, int):
        return bool(mlps) and mlps == ["dense"] * value + ["sparse"] * (len(mlps) - value)
    if field == "moe_layer_freq":
        return bool(mlps) and value == [int(kind == "sparse") for kind in mlps]
    if field == "layer_switch" and isinstance(value, int) and value > 0:
        return bool(mixers) and mixers == [
            "full_attention" if index % value == value - 1 else "sliding_attention" for index in range(len(mixers))
        ]
    if field == "full_attention_interval" and isinstance(value, int) and value > 0:
        return bool(mixers) and mixers == [
            "full_attention" if index % value == value - 1 else "linear_attention" for index in range(len(mixers))
        ]
    if field == "order_of_interleaved_layers":
        return value == "local_attn_first" and mixers[:1] == ["sliding_attention"]
    return field == "hybrid_layer_pattern" and value == [int(kind == "sliding_attention") for kind in mixers]


def _derived(field: str, fields: Mapping[str, Any], config: Any) -> str | None:
    """Why an undeclared field repeats what the class derives, or None if it derives nothing.

    Raises `ConfigError` with both values if they differ.
    """
    derived = _derived_without(field, fields, config)
    if derived is None:
        return None
    if derived == fields[field]:
        return "repeats what transformers derives"
    name = type(config).__name__
    rule = f"transformers' {name} derives {show_value(derived)} from the other fields; make them agree"
    raise ConfigError(field, fields[field], rule)
