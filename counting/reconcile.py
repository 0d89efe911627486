"""Compares witnesses of one type: all integers must be equal, or an error names those that differ.

A witness is a struct of integers, nested to any depth: counts of layers, of a model, of a step. Witnesses are
compared field by field. A field is None if a witness does not count it. A number with only one witness is listed as
such.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from counting.counts import Counts
from counting.records.tidy import Tidy

WHOLE = "total"  # the component of a number that is not divided into components
IDENTITY = ("kind", "count", "found", "ascending")  # what identifies layers and passes; not compared as counts


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One number, with the value of each witness."""

    quantity: str
    scope: str
    component: str
    values: dict[str, int]  # witness -> its integer

    @property
    def agree(self) -> bool:
        """Whether all values are equal; there is no tolerance."""
        return len(set(self.values.values())) == 1

    @property
    def proven(self) -> bool:
        """Whether more than one witness has the number."""
        return len(self.values) > 1

    def __str__(self) -> str:
        text = f"{self.quantity}, {self.scope}, {self.component}: "
        (first, value), *others = self.values.items()
        text += f"{first} {value:,}"
        for name, other in others:
            text += (
                f" = {name} {other:,}" if other == value else f" differs from {name} {other:,}, by {value - other:+,}"
            )
        return text


class Agreement(Tidy, frozen=True, kw_only=True):
    """Every number of an analysis with its witnesses."""

    witnesses: tuple[str, ...]
    checks: tuple[Check, ...]


def all_checks(agreements: Sequence[Agreement]) -> Agreement:
    """All checks of several agreements, in order."""
    witnesses = dict.fromkeys(name for each in agreements for name in each.witnesses)
    return Agreement(witnesses=tuple(witnesses), checks=tuple(check for each in agreements for check in each.checks))


class DisagreementError(Exception):
    """Two witnesses of one number differ: at least one is wrong, and no number of this analysis can be trusted."""

    def __init__(self, name: str, checks: Sequence[Check]) -> None:
        self.checks = checks
        super().__init__("\n".join(f"{name}: {check}" for check in checks))


_W = TypeVar("_W", bound=msgspec.Struct)


def reconcile(name: str, witnesses: Mapping[str, _W]) -> tuple[_W, Agreement]:
    """The merged counts of all witnesses, and the check of every number. Raises `DisagreementError` if any two differ.

    `name` is the model's name, for the error. All witnesses must list the same layers in the same order. A number that
    is zero for all witnesses has no check.
    """
    checks: list[Check] = []
    merged: _W = _walk(dict(witnesses), _Place("model", None, ""), checks)
    different = [check for check in checks if not check.agree]
    if different:
        raise DisagreementError(name, different)
    return merged, Agreement(witnesses=tuple(witnesses), checks=tuple(checks))


class _Place(NamedTuple):
    """A position in the structs: the scope, the quantity, and the path of field names below the quantity."""

    scope: str
    quantity: str | None
    path: str

    def enter(self, value: Any) -> "_Place":
        """The position inside the struct `value`, which may define the scope or the quantity."""
        kind = None if hasattr(type(value), "scope") else getattr(value, "kind", None)
        scope = f"{kind} layer" if kind else getattr(type(value), "scope", self.scope)
        return self._replace(scope=scope, quantity=getattr(type(value), "quantity", self.quantity))

    def at(self, field: str, value: Any) -> "_Place":
        """The position at a field. The first field names the quantity if none is set; later ones the component."""
        if isinstance(value, tuple) or hasattr(type(value), "scope"):
            return self
        if self.quantity is None:
            return self._replace(quantity=field)
        if isinstance(value, Counts):
            return self._replace(scope=f"{self.scope}, {field}")
        return self._replace(path=f"{self.path}.{field}" if self.path else field)

    def check(self, values: dict[str, int], component: str | None = None) -> Iterator[Check]:
        """The check of one number; none if all its values are 0."""
        assert self.quantity is not None
        if any(values.values()):
            yield Check(quantity=self.quantity, scope=self.scope, component=component or WHOLE, values=values)


def _walk(values: dict[str, Any], place: _Place, checks: list[Check]) -> Any:
    """The merged value of all witnesses at one position; adds its checks to `checks`."""
    first = next(iter(values.values()))
    if isinstance(first, tuple):
        assert len({len(value) for value in values.values()}) == 1, f"{place.scope}: tables of unequal length"
        return tuple(
            _walk({name: value[index] for name, value in values.items()}, place, checks) for index in range(len(first))
        )
    if isinstance(first, msgspec.Struct):
        return _walk_struct(values, place.enter(first), checks)
    if isinstance(first, dict):
        return _walk_table(values, place, checks)
    checks.extend(place.check(values, place.path))
    return first


def _walk_table(values: dict[str, Any], place: _Place, checks: list[Check]) -> Any:
    """The merged table of all witnesses; what one of them lacks is 0 for it."""
    found = {}
    for key in dict.fromkeys(key for table in values.values() for key in table):
        known = next(table[key] for table in values.values() if key in table)
        whole = all(key in table for table in values.values())
        assert whole or _can_be_nothing(type(known)), f"{place.scope}: only some witnesses have {key}"
        of_key = {name: table[key] if key in table else type(known)() for name, table in values.items()}
        found[key] = _walk(of_key, place.at(key, known), checks)
    return found


def _can_be_nothing(kind: type[Any]) -> bool:
    """Whether all fields of a struct have defaults, as those of traffic."""
    return len(kind.__struct_defaults__) == len(kind.__struct_fields__)


def _walk_struct(values: dict[str, Any], place: _Place, checks: list[Check]) -> Any:
    first = next(iter(values.values()))
    merged: dict[str, Any] = {}
    for field in first.__struct_fields__:
        given = {name: getattr(value, field) for name, value in values.items() if getattr(value, field) is not None}
        if not given:
            merged[field] = None
        elif field in IDENTITY:
            assert len(set(given.values())) == 1, f"{place.scope}: witnesses speak of different layers: {given}"
            merged[field] = next(iter(given.values()))
        else:
            merged[field] = _walk(given, place.at(field, next(iter(given.values()))), checks)
    if hasattr(first, "total") and place.quantity is not None:
        checks.extend(
            place.check(
                {name: value.total for name, value in values.items()}, f"{place.path}.{WHOLE}" if place.path else WHOLE
            )
        )
    return type(first)(**merged)
