"""The one rule for fields that neither a family nor transformers' class of it declares.

A field that repeats another, or is known to change no count, is passed over and listed. A field that is off is passed
over and listed. A field that is on and not understood is refused, unless the caller names it in `ignore_fields`; no
field that is known to decide the architecture can be named there. A field that begins with an underscore is a comment.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch_models.errors import LONGEST_SHOWN_VALUE, ArgumentError, ConfigError, show_name, show_value
from torch_models.fields.architecture_fields import ARCHITECTURE_FIELDS
from torch_models.fields.known_fields import (
    ACTIVATION_FIELDS,
    CONVOLVED,
    EXPANDED,
    FIXED_FIELDS,
    GATED,
    NEUTRAL_VALUES,
    PER_HEAD,
    REPEATS,
    SWITCHED_BY,
    changes_no_count,
)
from torch_models.fields.switches import INVERTED, SWITCHES

NAME_IT = "name it in ignore_fields"
OFF = "is off"
AS_BUILT = "as the model is built"
NO_WINDOW = "no layer has a window"
WINDOW_FIELDS = {"sliding_window", "max_window_layers", "sliding_window_pattern", "layer_types"}


class SortedFields(NamedTuple):
    """The fields of a config that have no part in its model, each as "field = value"."""

    passed_over: tuple[str, ...]  # each with its reason in brackets
    ignored: tuple[str, ...]  # those that the caller named


def is_off(value: object) -> bool:
    """Whether the value is null, false, 0 or empty."""
    return value is None or value is False or (isinstance(value, int | float | str | list | dict) and not value)


def is_comment(field: str) -> bool:
    """Whether the field is a comment: its name begins with an underscore."""
    return field.startswith("_")


def without_comments(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields without comments, at any depth."""
    return {field: _without_comments(value) for field, value in fields.items() if not is_comment(field)}


def _without_comments(value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_comments({key: inner for key, inner in value.items() if isinstance(key, str)})
    return [_without_comments(inner) for inner in value] if isinstance(value, list) else value


def show_field(field: str, value: object) -> str:
    """Return "field = value" on one line; of an object or a long list only its length."""
    if isinstance(value, dict) and value:
        return f"{show_name(field)} = an object of {len(value)}"
    if isinstance(value, list) and len(ascii(value)) > LONGEST_SHOWN_VALUE:
        return f"{show_name(field)} = a list of {len(value)}"
    return f"{show_name(field)} = {show_value(value)}"


def sort_fields(
    fields: Mapping[str, Any],
    understood: Callable[[str], bool],
    *,
    reason: Callable[[str, Any], str | None],
    refusal: Callable[[str], str],
    of_a_family: Callable[[str], str | None],
    declared: Mapping[str, Any],
    ignore_fields: Sequence[str] = (),
) -> SortedFields:
    """Apply the rule to every field that is not `understood`.

    `reason` returns why a field may be passed over, or None. `refusal` completes the error for a field that decides
    the architecture. `of_a_family` returns in words which family here declares a field. `declared` are the values of
    the fields that the family declares. Raises `ConfigError` for a field that is refused, and `ArgumentError` for a
    name in `ignore_fields` that cannot be ignored.
    """
    _check_ignored(fields, understood, reason, of_a_family, ignore_fields)
    passed_over, ignored = [], []
    for field, value in fields.items():
        if understood(field) or is_comment(field):
            continue
        shown = show_field(field, value)
        if field in ignore_fields:
            ignored.append(shown)
            continue
        why = reason(field, value)
        if why is None and is_off(value):
            _check_off(field, value, declared)
            why = OFF
        if why is None:
            raise ConfigError(field, value, _refused(field, refusal, of_a_family, declared))
        passed_over.append(f"{shown} ({why})")
    return SortedFields(tuple(passed_over), tuple(ignored))


def common_reason(field: str, value: Any, fields: Mapping[str, Any], sizes: Mapping[str, Any]) -> str | None:
    """Return why a field changes nothing in any family, or None.

    `sizes` are the sizes, the activation and the window of the model, under their standard names. Raises `ConfigError`
    for a switch of `FIXED_FIELDS` with another value.
    """
    check_fixed(field, value)
    if field in FIXED_FIELDS:
        return "as in every model here"
    why = changes_no_count(field, value)
    if why is not None:
        return why
    if field in NEUTRAL_VALUES and value == NEUTRAL_VALUES[field] and not isinstance(value, bool):
        return "as without it"
    if fields.get(SWITCHED_BY.get(field, "")) is False:
        return f"{SWITCHED_BY[field]} is off"
    if field in WINDOW_FIELDS and _repeats_no_window(field, value, fields, sizes):
        return NO_WINDOW
    if field == "attn_type_list" and isinstance(value, list) and set(map(str, value)) == {"1"}:  # 0: linear attention
        _check_length(field, value, sizes)
        return "every layer has attention"
    if field in ACTIVATION_FIELDS and isinstance(value, str) and value in GATED.get(str(sizes.get("hidden_act")), ()):
        return "repeats hidden_act"
    if field == "pad_vocab_size_multiple" and _divides(value, sizes.get("vocab_size")):
        return "vocab_size is padded to it"
    if field == "time_step_rank" and sizes.get("mamba_num_heads") is not None:
        return "Mamba-2 projects a step for each head, without a low rank"
    for standard in REPEATS.get(field, ()):
        size = _DERIVED_SIZES[standard](sizes) if standard in _DERIVED_SIZES else sizes.get(standard)
        if size is not None:
            return f"repeats {standard}" if value == size and not isinstance(value, bool) else None
    return None


# What every model has under one name or another, so that a second name that is off says nothing of it.
_OF_EVERY_MODEL = frozenset(
    ARCHITECTURE_FIELDS[field]
    for field in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
)


def _check_off(field: str, value: Any, declared: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a field that says that the model lacks what a declared field says that it has."""
    meaning = ARCHITECTURE_FIELDS.get(field)
    if value is None or value == {} or meaning is None or meaning in _OF_EVERY_MODEL:
        return
    for other, given in declared.items():
        of_one_kind = other == "layer_types" and isinstance(given, list) and len(set(map(str, given))) < 2
        if ARCHITECTURE_FIELDS.get(other) == meaning and not is_off(given) and not of_one_kind:
            raise ConfigError(field, value, f"describes {meaning}, as {show_field(other, given)} does, and is off")


def check_fixed(field: str, value: Any) -> None:
    """Raise `ConfigError` for a switch of `FIXED_FIELDS` that has another value."""
    if field in FIXED_FIELDS and value is not None and value != FIXED_FIELDS[field]:
        raise ConfigError(field, value, f"must be {show_value(FIXED_FIELDS[field])}: nothing else is modelled")


def unused_window(field: str, fields: Mapping[str, Any]) -> bool:
    """Whether the field describes windows that the config itself switches off, by `use_sliding_window: false`."""
    return field in WINDOW_FIELDS and fields.get("use_sliding_window") is False


def _repeats_no_window(field: str, value: Any, fields: Mapping[str, Any], sizes: Mapping[str, Any]) -> bool:
    """Whether the field says of a model without windows that it has none."""
    if field == "layer_types":  # the layers that are built are compared later
        return isinstance(value, list) and set(map(str, value)) == {"full_attention"}
    if unused_window(field, fields):
        return True
    switched_off = sizes.get("use_sliding_window") is False or is_off(sizes.get("sliding_window"))
    return field != "sliding_window" and switched_off and not fields.get("use_sliding_window")


def _check_length(field: str, value: Sequence[Any], sizes: Mapping[str, Any]) -> None:
    total = sizes.get("num_hidden_layers")
    if isinstance(total, int) and len(value) != total:
        raise ConfigError(field, len(value), f"must name {total} layers, as many as num_hidden_layers")


def _per_head(sizes: Mapping[str, Any]) -> int | None:
    width, heads = sizes.get("hidden_size"), sizes.get("num_attention_heads")
    if not (isinstance(width, int) and isinstance(heads, int)) or heads < 1 or width % heads:
        return None
    return width // heads


def _expanded(sizes: Mapping[str, Any]) -> int | None:
    factor, width = sizes.get("expand"), sizes.get("hidden_size")
    return int(factor * width) if isinstance(factor, int | float) and isinstance(width, int) else None


def _convolved(sizes: Mapping[str, Any]) -> int | None:
    return None if sizes.get("conv_L_cache") is None else sizes.get("hidden_size")


_DERIVED_SIZES = {PER_HEAD: _per_head, EXPANDED: _expanded, CONVOLVED: _convolved}


def _divides(multiple: object, size: object) -> bool:
    return type(multiple) is int and multiple > 0 and isinstance(size, int) and size % multiple == 0


def _meaning(field: str) -> str | None:
    """Return what a field that decides the architecture describes; None for another field."""
    part = SWITCHES.get(field) or INVERTED.get(field)
    return ARCHITECTURE_FIELDS.get(field) or (None if part is None else str(part))


def _refused(
    field: str,
    refusal: Callable[[str], str],
    of_a_family: Callable[[str], str | None],
    declared: Iterable[str],
) -> str:
    close = difflib.get_close_matches(field, list(declared), n=1, cutoff=0.8)
    meaning = _meaning(field) or of_a_family(field)
    if meaning is not None:
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"describes {meaning}, {refusal(field)}{hint}"
    if close:
        return f"this field is not understood; did you mean {close[0]}?"
    return f"this field is not understood; if it does not change the architecture, {NAME_IT}"


def _check_ignored(
    fields: Mapping[str, Any],
    understood: Callable[[str], bool],
    reason: Callable[[str, Any], str | None],
    of_a_family: Callable[[str], str | None],
    ignore_fields: Sequence[str],
) -> None:
    for field in ignore_fields:
        if is_comment(field) and not understood(field):
            raise ArgumentError("ignore_fields", field, "is a comment, as every field that begins with an underscore")
        if field not in fields:
            raise ArgumentError("ignore_fields", field, "the config has no such field")
        meaning = _meaning(field)
        if meaning is None and not changes_no_count(field, fields[field]):
            meaning = of_a_family(field)
        if field in FIXED_FIELDS:
            meaning = meaning or "another architecture"
        if not understood(field) and meaning:
            raise ArgumentError("ignore_fields", field, f"describes {meaning}: it decides the architecture")
        if understood(field) or reason(field, fields[field]):
            raise ArgumentError("ignore_fields", field, "is understood, and what is understood is not ignored")


def names_given(value: object) -> tuple[str, ...]:
    """Return the names in `ignore_fields` as a tuple; raise `ArgumentError` if it is no sequence of names."""
    if isinstance(value, str) or not isinstance(value, Sequence | set | frozenset):
        raise ArgumentError("ignore_fields", value, "must be a sequence of names of fields")
    for name in value:
        if not isinstance(name, str) or not name:
            raise ArgumentError("ignore_fields", name, "must be the name of a field")
    return tuple(dict.fromkeys(value))
