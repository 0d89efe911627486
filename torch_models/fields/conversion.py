"""Converts fields to a struct, with an error that names field, value and rule."""

from typing import Any, TypeVar, get_args, get_type_hints

import msgspec

from torch_models.errors import ConfigError, show_value

MISSING = "is missing and has no default"

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
    keys = path.rstrip("`").split(".")
    value: Any = fields
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if rule.startswith("Invalid enum value"):
        allowed = get_args(get_type_hints(struct).get(keys[-1]))
        rule = f"must be {' or '.join(map(show_value, allowed))}"
    rule = rule.replace("`", "").replace("Expected ", "must be ").replace(", got", ", is")
    return ConfigError(".".join(keys), value, rule)
