"""The sequence length that a model was pre-trained at, if its config contains it. Torch-free."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ORIGINAL = "original_max_position_embeddings"


def trained_length(fields: Mapping[str, Any], positions: Sequence[str]) -> tuple[Any, str | None]:
    """Return the length and the name of its field, or (None, None) if no field has it. Values are not checked.

    The first of these fields that is present is used: `max_sequence_length`; `original_max_position_embeddings` at any
    depth, for models whose positions were stretched after pre-training; the fields in `positions`, the family's names
    for the maximum length.
    """
    named = {"max_sequence_length": fields.get("max_sequence_length")}
    named |= dict(_originals(fields))
    named |= {field: fields.get(field) for field in positions}
    return next(((value, field) for field, value in named.items() if value is not None), (None, None))


def _originals(fields: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and value of the field at the top level, then at any depth within the rotary fields."""
    if ORIGINAL in fields:
        yield f"{path}{ORIGINAL}", fields[ORIGINAL]
    for field, inner in fields.items():
        if isinstance(inner, Mapping) and (path or field.startswith("rope")):
            yield from _originals(inner, f"{path}{field}.")
