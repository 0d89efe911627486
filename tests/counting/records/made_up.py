"""Results of every kind with made-up numbers, all different, built from the types of their fields."""

import importlib
import pkgutil
from collections.abc import Iterator
from itertools import count
from typing import Any

import msgspec
from msgspec import inspect

import counting
from counting.cost.scaling_laws.law import CONSTANTS, Constant, ScalingLaw
from counting.records import Tidy
from counting.setup import Setup
from torch_models.layout import Layout

WITH_TORCH = ("counting.measurements", "counting.via_transformers", "counting.calibration.machine")
SETUP = Setup(sequence_length=17, micro_batches=3, global_batch_tokens=51, mtp=True, recompute=5, loss_chunk=11)
LAYOUT = Layout(num_gpus=19, gpus_per_node=7, dp=2, pp=2, stages_per_rank=2, stage_layers=(3, 4))
LAW = ScalingLaw(  # a law checks its numbers, as setup and layout do
    name="law",
    source="made up",
    **{
        field: Constant(value=number / 8 + 0.5, low=number / 8, high=number + 1.75)
        for number, field in enumerate(CONSTANTS)
    },
    fitted_parameters=(51.5, 52.5),
    fitted_tokens=(53.5, 54.5),
    runs=55,
    bootstrap=((1.0, 2.0, 3.0, 0.4, 0.5), (0.25, 0.25, 0.25, 1.25, 1.5)) * 50,
)


def kinds_of_results() -> list[type[Tidy]]:
    """Every class of results that needs no torch, whatever else the process has loaded."""
    for module in pkgutil.walk_packages(counting.__path__, "counting."):
        if not module.name.startswith(WITH_TORCH):
            importlib.import_module(module.name)
    return [kind for kind in dict.fromkeys(_below(Tidy)) if not kind.__module__.startswith(WITH_TORCH)]


def _below(kind: type[Tidy]) -> Iterator[type[Tidy]]:
    for below in kind.__subclasses__():
        yield below
        yield from _below(below)


def made_up(kind: type[Any]) -> Any:
    """An instance of the class: every number is another one, and no field is None that need not be."""
    return _of_type(inspect.type_info(kind), count(1001))


def _of_type(type_: inspect.Type, numbers: Iterator[int]) -> Any:
    match type_:
        case inspect.IntType() | inspect.AnyType() | inspect.CustomType():
            return next(numbers)
        case inspect.FloatType():
            return next(numbers) + 0.5
        case inspect.BoolType():
            return True
        case inspect.StrType():
            return f"word {next(numbers)}"
        case inspect.LiteralType(values=values):
            return values[0]
        case inspect.UnionType(types=types):
            return _of_type(next(one for one in types if not isinstance(one, inspect.NoneType)), numbers)
        case inspect.TupleType(item_types=types):
            return tuple(_of_type(one, numbers) for one in types)
        case inspect.VarTupleType(item_type=item) | inspect.ListType(item_type=item):
            return tuple(_of_type(item, numbers) for _ in range(2))
        case inspect.DictType(key_type=key, value_type=value):
            return {_of_type(key, numbers): _of_type(value, numbers)}
        case inspect.StructType(cls=cls, fields=fields):
            known = {Setup: SETUP, Layout: LAYOUT, ScalingLaw: LAW}.get(cls)
            return known or cls(**{field.name: _of_type(field.type, numbers) for field in fields})
    raise TypeError(type_)


def numbers_in(document: Any) -> Iterator[float]:
    """Every number of a JSON document, decoded; true and false are 1 and 0."""
    if isinstance(document, dict):
        for inner in document.values():
            yield from numbers_in(inner)
    elif isinstance(document, list):
        for inner in document:
            yield from numbers_in(inner)
    elif isinstance(document, int | float):
        yield document


def numbers_of(result: Any, *, without: tuple[str, ...] = ()) -> list[float]:
    """Every number that the result has in a JSON document, but for fields of these names, in order of size."""
    return sorted(numbers_in(without_fields(msgspec.json.decode(msgspec.json.encode(result)), without)))


def without_fields(document: Any, fields: tuple[str, ...]) -> Any:
    """The document without fields of these names, wherever they are."""
    if isinstance(document, dict):
        return {field: without_fields(inner, fields) for field, inner in document.items() if field not in fields}
    return [without_fields(inner, fields) for inner in document] if isinstance(document, list) else document
