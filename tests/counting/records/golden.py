"""What rows of results are called, counted in and governed by: as lines, to compare with `named_rows.txt`.

A line is `class.field -> scope | component | quantity | unit | sentence`. Sentences stand in full at the head of the
file, each once, under a number. The table is a record: where a name, a unit or a sentence is changed on purpose, its
lines are written anew from `lines()`, and the difference is read against the comments at the fields.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from counting.records.places import WITHOUT_ROWS
from tests.counting.records.made_up import kinds_of_results, made_up

TABLE = Path(__file__).with_name("named_rows.txt")


def lines() -> list[str]:
    """The table of all kinds of results with made-up numbers; each field of a class once, where it is first."""
    sentences, named = dict[str, int](), dict[str, str]()
    for kind in sorted(kinds_of_results(), key=lambda kind: kind.__name__):
        result = made_up(kind)
        for (field, value), row in zip(numbers_by_field(result), result.to_records(), strict=True):
            assert row.value == value, f"{field}: the row has the number of another field"
            if field not in named:
                sentence = sentences.setdefault(row.convention, len(sentences)) if row.convention else "none"
                named[field] = " | ".join((row.scope, row.component, row.quantity, row.unit, str(sentence)))
    head = [f"{number}: {sentence}" for sentence, number in sentences.items()]
    return [*head, "", *(f"{field} -> {name}" for field, name in named.items())]


def numbers_by_field(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a result under class and field, in their order; those of a series with their place in it."""
    if isinstance(value, msgspec.Struct):
        of = type(value).__name__
        for field in value.__struct_fields__:
            if (of, field) not in WITHOUT_ROWS:
                inside = name if of in ("Constant", "Interval") else of
                yield from numbers_by_field(getattr(value, field), f"{inside}.{field}")
    elif isinstance(value, dict):
        for inner in value.values():
            yield from numbers_by_field(inner, f"{name}{{}}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from numbers_by_field(inner, f"{name}[{index}]")
    elif isinstance(value, int | float):
        yield name, value
