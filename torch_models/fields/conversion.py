"""From values of JSON to checked types, with errors that name field, value and rule.

Some numbers of a config are not JSON's: Python writes the bare words Infinity, -Infinity and NaN; transformers writes
`{"__float__": "Infinity"}`.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec

from torch_models.errors import ConfigError, UserError, show_value
from torch_models.fields.unknown_fields import is_comment, without_comments

MISSING = "is missing and has no default"

_FLOAT_TAG = "__float__"
_TAGGED_FLOATS = {"Infinity", "-Infinity", "NaN"}

MAY_BE_INFINITE = {"time_step_limit", "dt_limit"}  # the range of a state space's steps, which may have no end

S = TypeVar("S", bound=msgspec.Struct)


def convert(fields: dict[str, Any], struct: type[S]) -> S:
    """Convert `fields` to a `struct`; raise a `ConfigError` that names field and rule if that fails."""
    try:
        return msgspec.convert(fields, struct)
    except UnicodeEncodeError as error:  # a lone surrogate: valid in JSON, but not in a text
        field = next(f for f, value in fields.items() if isinstance(value, str) and value == error.object)
        raise ConfigError(field, fields[field], "is not valid text") from None
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigError):  # raised by a struct's own check
            raise error.__cause__ from None
        raise _as_config_error(str(error), fields, struct) from None


def _as_config_error(message: str, fields: dict[str, Any], struct: type[msgspec.Struct]) -> ConfigError:
    """Convert msgspec's message "<rule> - at `$.<path>`" to a `ConfigError` with field, value and rule."""
    rule, _, path = message.partition(" - at `$.")
    if rule.startswith("Object missing required field"):
        return ConfigError(rule.split("`")[1], None, MISSING)
    if rule.startswith("Object contains unknown field"):
        field = rule.split("`")[1]
        return ConfigError(field, fields.get(field), "this field is not understood")
    path = path.rstrip("`")
    keys = path.split(".")
    value: Any = fields
    for key in re.findall(r"[^.\[\]]+", path):  # of no_rope_layers[3] the field, then the place in the list
        if isinstance(value, list):
            value = value[int(key)] if key.isdecimal() else None
        else:
            value = value.get(key) if isinstance(value, dict) else None
    if rule.startswith("Invalid enum value"):
        allowed = get_args(get_type_hints(struct).get(keys[-1]))
        rule = f"must be {' or '.join(map(show_value, allowed))}"
    rule = rule.replace("`", "").replace("Expected ", "must be ").replace(", got", ", is")
    return ConfigError(".".join(keys), value, rule)


def decoded(value: Any) -> Any:
    """Return the value with every tagged number replaced by the float, at any depth."""
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {_FLOAT_TAG} and str(value[_FLOAT_TAG]) in _TAGGED_FLOATS:
            return float(value[_FLOAT_TAG])
        return {key: decoded(item) for key, item in value.items()}
    return value


def check_finite(fields: Mapping[str, Any]) -> None:
    """Raise `ConfigError` with the path of a field that is not a finite number, where it may not be infinite."""
    for field, value in fields.items():
        if is_comment(field):
            continue
        for path, number in _not_finite(field, value):
            if path.rpartition(".")[2] not in MAY_BE_INFINITE or math.isnan(number):
                raise ConfigError(path, number, "must be a finite number")


def _not_finite(path: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _not_finite(f"{path}.{key}", inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _not_finite(path, inner)


def checked(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields with tagged numbers decoded; raise `ConfigError` for a number that is not finite."""
    try:
        fields = decoded(fields)
        check_finite(fields)
        without_comments(fields)
    except RecursionError:
        raise UserError("the config is nested too deeply") from None
    return fields


def as_json(fields: Mapping[str, Any]) -> str | None:
    """Return the fields as a JSON object in one line, sorted by name; equal fields give equal text.

    A value that JSON has no type for becomes its text, as a dtype of torch. None if the fields cannot be written.
    """
    try:
        return json.dumps(fields, default=str, sort_keys=True)
    except (TypeError, ValueError, RecursionError):  # keys of several types; a number of too many digits
        return None
