"""The parser of --layout: axes as a user types them, "fsdp=32,tp=8,sp=off"."""

from typing import Any

from counting.command.amounts import parse_whole_number
from torch_models.errors import ArgumentError

# What is typed -> the field of `Layout`.
FIELDS = {
    "dp": "dp",
    "fsdp": "fsdp",
    "tp": "tp",
    "cp": "cp",
    "pp": "pp",
    "ep": "ep",
    "zero": "zero",
    "sp": "sequence_parallel",
    "schedule": "schedule",
    "stages_per_rank": "stages_per_rank",
    "grouping": "grouping",
}
NAMES = ("schedule", "grouping")  # axes whose value is a name
LONGEST_NUMBER = 9  # digits of the layers of a stage
SWITCH = {"on": True, "off": False}


def parse_layout(text: str, flag: str = "--layout") -> dict[str, Any]:
    """The fields of `Layout` that the text sets. Raises `ArgumentError` for axes that are unknown or given twice."""
    fields: dict[str, Any] = {}
    for pair in text.split(","):
        axis, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not value:
            raise ArgumentError(flag, text, "must be pairs of axis and number separated by commas, as fsdp=32,tp=8")
        if axis not in FIELDS:
            raise ArgumentError(flag, text, f"{axis or pair} is no axis: choose from {', '.join(FIELDS)}")
        if FIELDS[axis] in fields:
            raise ArgumentError(flag, text, f"give {axis} once")
        fields[FIELDS[axis]] = _value(axis, value, flag)
    return fields


def parse_stage_layers(text: str, flag: str = "--stage_layers") -> tuple[int, ...]:
    """The layers of each stage, from "3,4,4,4"; their sum is checked with the model."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) <= LONGEST_NUMBER for part in parts):
        raise ArgumentError(flag, text, "must be the number of layers of each stage, separated by commas, as 3,4,4")
    return tuple(map(int, parts))


def _value(axis: str, text: str, flag: str) -> Any:
    """The value of one axis; that of a number is checked by `Layout`."""
    if axis in NAMES:
        return text
    if axis != "sp":
        return parse_whole_number(text, f"{flag} {axis}")
    if text not in SWITCH:
        raise ArgumentError(f"{flag} sp", text, "must be on or off")
    return SWITCH[text]
