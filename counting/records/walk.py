"""All numbers of a result as rows: a walk over its fields, so that a new field has its rows too."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from counting.records.conventions import CONVENTION_NOTE, FLOP_CONVENTIONS, governing_sentence
from counting.records.places import (
    FIELD_SCOPES,
    FOREIGN,
    FOREIGN_UNIT,
    NAMES_OF_NUMBERS,
    PARTS_IN_FIELD,
    PARTS_OF_ANY,
    PARTS_OF_CLASS,
    SCOPES,
    SEVERAL_NUMBERS,
    SHARE_A_SCOPE,
    WITHOUT_ROWS,
)
from counting.records.record import TidyRow
from counting.records.units import YES_OR_NO, unit_of_quantity

BETWEEN = " / "  # the parts of a scope
TOTAL = "total"  # the component of a number whose components are rows too
BY_COMPONENT = "_by_component"


class _Place(NamedTuple):
    """Where a number is: its scope, and what the structs above it say of all numbers below."""

    scope: tuple[str, ...]
    of: str  # the class that it is in
    quantity: str | None = None  # numbers are components of it
    unit: str | None = None
    convention: str | None = None

    def within(self, scope: str) -> "_Place":
        return self._replace(scope=(*self.scope, scope)) if scope else self

    def row(self, quantity: str, component: str, value: float) -> TidyRow:
        unit, number = self.unit or unit_of_quantity(quantity), value
        if isinstance(value, bool):
            unit, number = YES_OR_NO, int(value)
        convention = governing_sentence(self.of, quantity, component) if self.convention is None else self.convention
        return TidyRow(BETWEEN.join(self.scope), component, quantity, number, unit, convention)


def tidy_rows(result: msgspec.Struct) -> list[TidyRow]:
    """The rows of a result, in the order of its fields."""
    return list(_struct(result, _Place((), "").within(_scope_of(result))))


def _scope_of(value: msgspec.Struct) -> str:
    """What the struct is called, by its class and its own fields."""
    name = type(value).__name__
    fields = {field: "none" if (of := getattr(value, field)) is None else of for field in value.__struct_fields__}
    return SCOPES[name].format_map(fields).removesuffix(", none") if name in SCOPES else name


def _struct(value: msgspec.Struct, place: _Place) -> Iterator[TidyRow]:
    name, fields = type(value).__name__, value.__struct_fields__
    place = place if name in PARTS_OF_ANY else place._replace(of=name)
    if getattr(value, "convention", None) in FLOP_CONVENTIONS:
        place = place._replace(convention=_in_words(value.convention))  # type: ignore[attr-defined]
    quantity, apart = PARTS_OF_CLASS.get(name, (place.quantity, ()))
    for field in fields:
        content = getattr(value, field)
        if (name, field) in WITHOUT_ROWS:
            continue
        if quantity is not None and field not in apart:
            yield from _part(content, field, place._replace(quantity=quantity))
            continue
        plain = place._replace(quantity=None)
        if isinstance(content, bool | int | float):
            named, component = _named(NAMES_OF_NUMBERS.get((name, field), field), value)
            whole = TOTAL if f"{field}{BY_COMPONENT}" in fields else ""
            yield plain.row(named, component or whole, content)
        else:
            yield from _field(content, value, field, plain)


def _named(name: str, value: msgspec.Struct) -> tuple[str, str]:
    """Quantity and component of a name in `NAMES_OF_NUMBERS`, which may have fields of the struct in it."""
    quantity, _, component = name.partition(", ")
    of_struct = {field: getattr(value, field) for field in value.__struct_fields__}
    return quantity.format_map(of_struct), component.format_map(of_struct)


def _part(content: Any, field: str, place: _Place) -> Iterator[TidyRow]:
    """The components that a struct of parts has in one field: a number, or a table of them."""
    assert place.quantity is not None
    table = content if isinstance(content, Mapping) else {"": content}
    for key, number in table.items():
        if isinstance(number, bool | int | float):
            yield place.row(place.quantity, f"{field}, {key}" if key else field, number)


def _field(content: Any, value: msgspec.Struct, field: str, place: _Place) -> Iterator[TidyRow]:
    """The rows of what a field of `value` has, which is no number of its own."""
    of = type(value).__name__
    if isinstance(content, msgspec.Struct):
        end = PARTS_OF_ANY.get(type(content).__name__)
        parts = PARTS_IN_FIELD.get((of, field)) if end is None else field.removesuffix(end)
        if parts is not None:
            yield from _struct(content, place._replace(quantity=parts))
            return
        named = _scope_of(content) if type(content).__name__ in SCOPES else field.replace("_", " ")
        yield from _struct(content, place.within(FIELD_SCOPES.get((of, field), named)))
    elif isinstance(content, Mapping):
        if field in FOREIGN:
            yield from _foreign(content, place.within(field)._replace(unit=FOREIGN_UNIT, convention=""))
            return
        yield from _table(
            content, *_named(NAMES_OF_NUMBERS.get((of, field), field.removesuffix(BY_COMPONENT)), value), place
        )
    elif isinstance(content, list | tuple):
        yield from _sequence(content, field, place)


def _table(table: Mapping[str, Any], quantity: str, component: str, place: _Place) -> Iterator[TidyRow]:
    """The rows of a table: its keys are components or, where the component is known, scopes."""
    for key, number in table.items():
        if isinstance(number, msgspec.Struct):
            yield from _struct(number, place.within(key))
        elif isinstance(number, list | tuple):
            named, word = SEVERAL_NUMBERS[quantity]
            for index, each in enumerate(number):
                yield place.within(f"{word} {index}").row(named, key, each)
        elif isinstance(number, bool | int | float):
            if key in FLOP_CONVENTIONS:
                yield place.within(key)._replace(convention=_in_words(key)).row(quantity, component, number)
            elif component:
                yield place.within(key).row(quantity, component, number)
            else:
                yield place.row(quantity, key or TOTAL, number)  # the module without a name is the whole


def _foreign(content: Any, place: _Place, name: str = "") -> Iterator[TidyRow]:
    """The numbers of a document that is not ours, such as a config, under the names that they have there."""
    if isinstance(content, Mapping):
        for key, inner in content.items():
            yield from _foreign(inner, place.within(name), key)
    elif isinstance(content, list | tuple):
        for number, inner in enumerate(content):
            yield from _foreign(inner, place.within(str(number)), name)
    elif isinstance(content, int | float):
        yield place.row(name, "", content)


def _sequence(content: list[Any] | tuple[Any, ...], field: str, place: _Place) -> Iterator[TidyRow]:
    structs = [each for each in content if isinstance(each, msgspec.Struct)]
    scopes = [_scope_of(each) for each in structs]
    for index, (each, scope) in enumerate(zip(structs, scopes, strict=True)):
        again = scopes[:index].count(scope)
        alike = scopes.count(scope) > 1 and type(each).__name__ not in SHARE_A_SCOPE
        numbered = f"{scope} ({again + 1})" if alike else scope
        yield from _struct(each, place.within(numbered))
    numbers = [each for each in content if isinstance(each, int | float)]
    quantity, names = SEVERAL_NUMBERS.get(field, (field.removesuffix("s"), field.removesuffix("s").replace("_", " ")))
    for index, number in enumerate(numbers):
        if isinstance(names, str):
            yield place.within(f"{names} {index}").row(quantity, "", number)
        else:
            yield place.row(quantity, _names(names, len(numbers))[index], number)


def _names(names: tuple[str, ...], number: int) -> tuple[str, ...]:
    """The names of so many numbers of a series: of one the middle one, of two the ends."""
    return {1: (names[len(names) // 2],), 2: (names[0], names[-1])}.get(number, names)


def _in_words(convention: str) -> str:
    """A convention of training FLOPs as a sentence."""
    return f"Training FLOPs: {FLOP_CONVENTIONS[convention]}. {CONVENTION_NOTE}"
