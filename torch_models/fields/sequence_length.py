"""The sequence length that a model was pre-trained at, as far as its config says so. Torch-free."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ORIGINAL = "original_max_position_embeddings"


def trained_length(fields: Mapping[str, Any], positions: Sequence[str]) -> tuple[Any, str | None]:
    """The length and the name of the field that says so; (None, None) where none does. Values are not checked.

    `max_sequence_length` comes first; then `original_max_position_embeddings` wherever it stands, which models whose
    positions were stretched after pre-training keep; then `positions`, the family's names of what it can be run at.
    """
    named = {"max_sequence_length": fields.get("max_sequence_length")}
    named |= dict(_originals(fields))
    named |= {field: fields.get(field) for field in positions}
    return next(((value, field) for field, value in named.items() if value is not None), (None, None))


def _originals(fields: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The field at the top, then within what describes the rotary embedding, however deep."""
    if ORIGINAL in fields:
        yield f"{path}{ORIGINAL}", fields[ORIGINAL]
    for field, inner in fields.items():
        if isinstance(inner, Mapping) and (path or field.startswith("rope")):
            yield from _originals(inner, f"{path}{field}.")
