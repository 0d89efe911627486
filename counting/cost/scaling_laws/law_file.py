"""A scaling law in a file of JSON: the fields of `ScalingLaw`, as `configs/scaling_laws.json` has them."""

import os
from typing import Any

import msgspec

from counting.cost.hardware import read_json_file
from counting.cost.scaling_laws.law import CONSTANTS, RANGES, Constant, ScalingLaw
from torch_models.errors import ConfigError, UserError, show_name, show_value

MISSING = "is missing and has no default"
DRAW_RULE = "must be five numbers: E, A, B, alpha, beta"


def read_law(path: str | os.PathLike[str]) -> ScalingLaw:
    """The law in the file `path`, a JSON object.

    Raises UserError with file, field, value and rule if the file cannot be read or is no such object, or if a field is
    missing, unknown, of another type or out of range.
    """
    shown = show_name(os.fspath(path))
    content = read_json_file(path, shown, "a file of a law")
    if not isinstance(content, dict) or not content:
        rule = "must be a JSON object with the constants of one law, as each in configs/scaling_laws.json"
        raise UserError(f"{shown}: {rule}, but is {show_value(content)}")
    try:
        return law_of_fields(content)
    except ConfigError as error:
        raise error.in_file(shown) from None


def law_of_fields(fields: dict[str, Any]) -> ScalingLaw:
    """The law of these fields of JSON; raises ConfigError with field, value and rule."""
    from torch_models.fields.conversion import convert  # slow, and a law's name does not need it

    fields = {name: value for name, value in fields.items() if not name.startswith("_")}
    for name in CONSTANTS:
        fields[name] = _constant(name, fields)
    for name in RANGES:
        _check_numbers(name, fields.get(name), 2, "must be two numbers, the smallest and the largest", fields)
    draws = fields.get("bootstrap", ())
    if not isinstance(draws, list | tuple):
        raise ConfigError("bootstrap", draws, f"must be a list of draws, each of which {DRAW_RULE}")
    for number, draw in enumerate(draws):
        _check_numbers(f"bootstrap[{number}]", draw, len(CONSTANTS), DRAW_RULE)
    return convert(fields, ScalingLaw)


def _constant(name: str, fields: dict[str, Any]) -> Constant:
    from torch_models.fields.conversion import convert

    if name not in fields:
        raise ConfigError(name, None, MISSING)
    given = fields[name]
    if not isinstance(given, dict):
        raise ConfigError(name, given, 'must be an object with a value, as {"value": 0.34}, with low and high if known')
    try:
        return convert(given, Constant)
    except ConfigError as error:
        raise ConfigError(f"{name}.{error.field}", error.value, error.rule) from None


def _check_numbers(name: str, given: object, count: int, rule: str, fields: dict[str, Any] | None = None) -> None:
    """Raises ConfigError if `given` is not a list of `count` numbers, or if `fields` does not have it."""
    if fields is not None and name not in fields:
        raise ConfigError(name, None, MISSING)
    numbers = isinstance(given, list | tuple) and len(given) == count
    if not numbers or not all(isinstance(one, int | float) and not isinstance(one, bool) for one in given):  # type: ignore[attr-defined]
        raise ConfigError(name, given, rule)


def law_as_json(law: ScalingLaw) -> bytes:
    """The law as a file of JSON, which `read_law` reads; a field that is not known is left out."""
    fields = {name: value for name, value in msgspec.to_builtins(law).items() if value not in (None, [], ())}
    for name in CONSTANTS:
        fields[name] = {end: number for end, number in fields[name].items() if number is not None}
    return msgspec.json.format(msgspec.json.encode(fields), indent=2) + b"\n"
