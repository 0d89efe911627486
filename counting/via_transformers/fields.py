"""The fields of a config that transformers reads: their names, and the fields that do not change any count.

A configuration class accepts fields that it does not declare. It converts such a field, reads it, or only stores it.
Fields that are only stored are refused, because they may or may not change the model, unless they repeat a value that
the class derives.
"""

import dataclasses
import difflib
import inspect
import types
from collections.abc import Iterator, Mapping
from typing import Any

from torch_models.errors import ConfigError, show_value
from torch_models.fields.known_fields import ALIASES, EXPERT_COUNTS, FIXED_FIELDS, IRRELEVANT_FIELDS

_ROTARY = "turns keys and queries, which multiplies no matrices"
_REPEATED = "repeats another field"
_KERNEL = "chooses a kernel, not a product"
_OLD_CODE = "only the family's first code read it"
_CHOICE = "says which experts a token visits, not how many"

# Fields of published configs that change no count and that no class of transformers declares, with the reason.
IRRELEVANT_FOREIGN_FIELDS = {
    "n_ctx": _REPEATED,
    "seq_length": _REPEATED,
    "max_sequence_length": "is the sequence length that is analysed",
    "rope_theta": _ROTARY,
    "rope_scaling": _ROTARY,
    "rope_local_base_freq": _ROTARY,
    "rotary_emb_base": _ROTARY,
    "rotary_pct": _ROTARY,
    "partial_rotary_factor": _ROTARY,
    "attention_softmax_in_fp32": _KERNEL,
    "bias_dropout_fusion": _KERNEL,
    "masked_softmax_fusion": _KERNEL,
    "skip_bias_add": _KERNEL,
    "skip_bias_add_qkv": _KERNEL,
    "scale_attention_softmax_in_fp32": _KERNEL,
    "layer_norm_epsilon": "keeps a norm from dividing by zero",
    "scoring_func": _CHOICE,
    "topk_method": _CHOICE,
    "num_nextn_predict_layers": "multi-token prediction is not in the built model; the report notes this",
    "offset_alibi": _OLD_CODE,
    "activation_function": "multiplies no matrices",
    "norm_topk_prob": "scales the weights of the experts, which multiplies no matrices",
    "unk_token_id": "names a token, not a size",
}

# Undeclared switches of published configs, with the one value that matches the model that transformers builds.
FIXED_FOREIGN_FIELDS: dict[str, object] = {
    "_remove_final_layer_norm": False,
    "activation_dropout": 0.0,
    "apply_residual_connection_post_layernorm": False,
    "attention_bias": False,
    "layer_switch": 4,
    "mlp_type": "default",
    "moe_layer_freq": 1,
    "norm_type": "layer_norm",
    "order_of_interleaved_layers": "local_attn_first",
    "position_embedding_type": "rope_gptj",
    "scale_attn_weights": True,
    "use_embedding_sharing": True,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "use_parallel_embedding": True,
}

_STANDARD_NAMES = ALIASES | {"torch_dtype": "dtype"}  # the reverse of published files

# transformers writes numbers that JSON does not have as {"__float__": "Infinity"}.
_FLOAT_TAG = "__float__"
_TAGGED_FLOATS = {"Infinity", "-Infinity", "NaN"}


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
    """The fields under the names of the class, whichever name the file uses; tagged floats are decoded.

    Raises `ConfigError` if two names of one field have different values.
    """
    renamed: dict[str, Any] = {}
    given_as: dict[str, str] = {}
    for field, value in fields.items():
        own = _own_name(field, config_class)
        if own in renamed and renamed[own] != value:
            rule = f"is another name of {given_as[own]}, which is {show_value(fields[given_as[own]])}"
            raise ConfigError(field, value, rule)
        renamed[own], given_as[own] = _decoded(value), field
    old, new = renamed.get("rope_scaling"), renamed.get("rope_parameters")
    if old and new and old != new:
        raise ConfigError("rope_scaling", old, f"is another name of rope_parameters, which is {show_value(new)}")
    return renamed


def _own_name(field: str, config_class: Any) -> str:
    """The class's name of a field, by the class's table of names, then by ours; if in neither, the field itself."""
    declared = declared_fields(config_class)
    own_names: dict[str, str] = config_class.attribute_map
    others: tuple[str, ...] = EXPERT_COUNTS if field in EXPERT_COUNTS else (_STANDARD_NAMES.get(field, field),)
    for name in (field, *others):
        if name in own_names and not (name in declared and own_names[name] not in declared):
            return own_names[name]
        if name in declared:
            return name
    return field


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {_FLOAT_TAG} and str(value[_FLOAT_TAG]) in _TAGGED_FLOATS:
            return float(value[_FLOAT_TAG])
        return {key: _decoded(item) for key, item in value.items()}
    return value


def check_fields(fields: Mapping[str, Any], config: Any) -> None:
    """Refuse a field that `config`, which transformers made from `fields`, ignores or only stores.

    Raises `ConfigError` with the field, and with both values if the class derives another one.
    """
    config_class = type(config)
    declared = declared_fields(config_class)
    known = {"model_type"} | declared | IRRELEVANT_FIELDS.keys() | IRRELEVANT_FOREIGN_FIELDS.keys()
    fixed = FIXED_FIELDS | FIXED_FOREIGN_FIELDS
    read = set(_names_read(config_class))
    for field, value in fields.items():
        if value is None or field in IRRELEVANT_FIELDS:
            continue
        if field in FIXED_FIELDS and field != "is_decoder" and value != FIXED_FIELDS[field]:
            raise ConfigError(field, value, f"must be {show_value(FIXED_FIELDS[field])}: only decoders are measured")
        if field in declared:
            _refuse_passed_over(field, fields, config)
        elif not (field in known or field in read or (field in fixed and value == fixed[field])):
            _refuse_kept(field, fields, config)


def _names_read(config_class: Any) -> Iterator[str]:
    """Names that a class reads without declaring them, such as older names: all strings in its `__post_init__`."""
    from transformers import PreTrainedConfig

    for owner in config_class.__mro__[: config_class.__mro__.index(PreTrainedConfig)]:
        own = vars(owner).get("__post_init__")
        code = getattr(inspect.unwrap(own), "__code__", None) if own else None
        yield from _strings(code) if code else ()


def _strings(code: types.CodeType) -> Iterator[str]:
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, types.CodeType):
            yield from _strings(constant)


def _without(field: str, fields: Mapping[str, Any], config: Any) -> Any:
    """The value that the class derives for the field if the config does not have it; None if there is none."""
    try:
        rebuilt = type(config)(**{name: value for name, value in fields.items() if name != field})
    except Exception:  # transformers' own checks may raise any exception
        return None
    return value_of(field, rebuilt)


def _refuse_passed_over(field: str, fields: Mapping[str, Any], config: Any) -> None:
    """Refuse a declared field that the class overwrites with a derived value, because the user's value is ignored."""
    value, made = fields[field], value_of(field, config)
    if isinstance(value, bool | int | float | str) and made not in (None, value):
        default = {one.name: one.default for one in dataclasses.fields(config)}[field]
        if value != default and made == _without(field, fields, config):
            name = type(config).__name__
            raise ConfigError(field, value, f"transformers' {name} makes it {show_value(made)} whatever is given")


def _refuse_kept(field: str, fields: Mapping[str, Any], config: Any) -> None:
    """Refuse an undeclared field that the class only stores, unless it repeats the value that the class derives."""
    if value_of(field, config) is None:
        return
    value, name = fields[field], type(config).__name__
    derived = _without(field, fields, config)
    if derived == value:
        return
    if derived is not None:
        rule = f"transformers' {name} derives {show_value(derived)} from the other fields; make them agree or remove it"
        raise ConfigError(field, value, rule)
    close = difflib.get_close_matches(field, declared_fields(type(config)), n=1, cutoff=0.8)
    hint = f"did you mean {close[0]}?" if close else "if it does not change the architecture, remove it"
    raise ConfigError(field, value, f"transformers' {name} has no such field; {hint}")
