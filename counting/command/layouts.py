"""The parser of --layout: axes as a user types them, "fsdp=32,tp=8,sp=off"."""

from typing import Any

from counting.command.amounts import parse_whole_number
from torch_models.errors import ArgumentError

# What is typed -> the field of `Layout`.
FIELDS = {
    "dp": "dp",
    "fsdp": "fsdp",
    "tp": "tp",
    "ep": "ep",
    "zero": "zero",
    "sp": "sequence_parallel",
    "grouping": "grouping",
}
NOT_MEASURED = ("cp", "pp", "schedule")
SWITCH = {"on": True, "off": False}


def parse_layout(text: str, flag: str = "--layout") -> dict[str, Any]:
    """The fields of `Layout` that the text sets. Raises `ArgumentError` for axes that are unknown or given twice."""
    fields: dict[str, Any] = {}
    for pair in text.split(","):
        axis, equals, value = (part.strip() for part in pair.partition("="))
        if axis in NOT_MEASURED:
            raise ArgumentError(flag, text, f"{axis} is not measured yet: leave it out")
        if not equals or not value:
            raise ArgumentError(flag, text, "must be pairs of axis and number separated by commas, as fsdp=32,tp=8")
        if axis not in FIELDS:
            raise ArgumentError(flag, text, f"{axis or pair} is no axis: choose from {', '.join(FIELDS)}")
        if FIELDS[axis] in fields:
            raise ArgumentError(flag, text, f"give {axis} once")
        fields[FIELDS[axis]] = _value(axis, value, flag)
    return fields


def _value(axis: str, text: str, flag: str) -> Any:
    """The value of one axis; that of a number is checked by `Layout`."""
    if axis == "grouping":
        return text
    if axis != "sp":
        return parse_whole_number(text, f"{flag} {axis}")
    if text not in SWITCH:
        raise ArgumentError(f"{flag} sp", text, "must be on or off")
    return SWITCH[text]
