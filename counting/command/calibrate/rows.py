"""Measured steps in a file of comma-separated values, with values as the flags of the same names take them.

model_config,seq_len,gpu,num_gpus,layout,micro_batch_size,micro_batches,recompute,execution,seconds
llama_3_8b,8192,H100,8,fsdp=8,1,4,full,eager,9.31
llama_3_8b,8192,H100,8,"fsdp=4,tp=2",1,8,none,compiled,8.87
"""

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from counting.calibration.steps import MeasuredStep
from counting.command.amounts import parse_num_gpus, parse_recompute, parse_whole_number
from counting.command.layouts import parse_layout
from counting.command.output_file import files_of_config
from counting.cost.hardware import Gpu, find_gpu
from counting.setup import Setup
from torch_models.errors import ArgumentError, ConfigError, UserError, show_name, show_value
from torch_models.fields.config import ForeignConfig, read_model
from torch_models.layout import Layout
from torch_models.spec import ModelSpec

COLUMNS = (
    "model_config",
    "seq_len",
    "gpu",
    "num_gpus",
    "layout",
    "micro_batch_size",
    "micro_batches",
    "recompute",
    "execution",
    "seconds",
)
FURTHER_COLUMNS = ("precision", "optimizer", "loss_chunk", "clip_gradients", "power_watts")
_MAY_BE_EMPTY = ("layout", *FURTHER_COLUMNS)  # one device; the defaults
# An argument of the library -> the column that sets it.
_COLUMN_OF = {"sequence_length": "seq_len", "cluster": "gpu", "gpus": "gpu"} | dict.fromkeys(
    ("dp", "fsdp", "zero", "tp", "sequence_parallel", "cp", "pp", "ep", "schedule", "stages_per_rank", "grouping"),
    "layout",
)
MAX_ROWS_BYTES = 1_000_000
_MOST_ROWS = 1000
_LONGEST_STEP = 1e6  # seconds
_SWITCH = {"on": True, "off": False}

_T = TypeVar("_T")


class Rows(NamedTuple):
    """The steps of a file, all on GPUs of one kind."""

    gpu: Gpu
    steps: tuple[MeasuredStep, ...]
    configs: tuple[str, ...]  # the files of their models


def read_rows(path: str | os.PathLike[str], known: Gpu | None) -> Rows:
    """The measured steps in the file `path`; `known` is the GPU of a cluster that is given, which may not be ours.

    Raises UserError with file, row, column, value and rule.
    """
    shown = show_name(os.fspath(path))
    lines = csv.reader(io.StringIO(_text(path, shown)), strict=True)
    steps: list[MeasuredStep] = []
    gpus: dict[str, tuple[Gpu, str]] = {}
    models: dict[str, ModelSpec] = {}
    try:
        columns = _columns(next(lines, []), shown)
        for values in lines:
            if not any(value.strip() for value in values):
                continue
            where = f"{shown}: row {len(steps) + 1} (line {lines.line_num})"
            if len(steps) == _MOST_ROWS:
                raise UserError(f"{where}: a file has at most {_MOST_ROWS} rows")
            row = _row(columns, values, where)
            gpu = _parsed(row, "gpu", where, lambda text: _gpu(text, known))
            gpus.setdefault(gpu.name, (gpu, where))
            if len(gpus) > 1:
                first = next(iter(gpus.values()))
                rule = (
                    f"is another GPU than that of {first[1].removeprefix(f'{shown}: ')}, {first[0].name}: one scale is"
                )
                raise ConfigError("gpu", gpu.name, f"{rule} of one cluster; give a file for each", where)
            steps.append(_step(row, where, models))
    except csv.Error as error:
        raise UserError(f"{shown}: line {lines.line_num}: not comma-separated values: {error}") from None
    if not steps:
        raise UserError(f"{shown}: has no rows below its columns")
    files = (file for config in models for file in files_of_config(config))
    return Rows(next(iter(gpus.values()))[0], tuple(steps), tuple(files))


def _text(path: str | os.PathLike[str], shown: str) -> str:
    """The text of the file, without the mark that some programs put before UTF-8, and with line feeds alone."""
    try:
        if not Path(path).is_file():
            raise UserError(f"{shown}: {'must be a file of rows' if Path(path).exists() else 'no such file'}")
        with Path(path).open("rb") as file:
            content = file.read(MAX_ROWS_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{shown}: cannot be read: {reason}") from None
    if len(content) > MAX_ROWS_BYTES:
        raise UserError(f"{shown}: a file of rows has at most {MAX_ROWS_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{shown}: is not text in UTF-8: save it as comma-separated values in that encoding") from None
    if not text.strip():
        raise UserError(f"{shown}: is empty: its first line must be {','.join(COLUMNS)}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _columns(names: Sequence[str], shown: str) -> tuple[str, ...]:
    """The names of the columns in their order."""
    columns = tuple(name.strip() for name in names)
    known = (*COLUMNS, *FURTHER_COLUMNS)
    if len(columns) == 1 and columns[0] not in known and any(mark in columns[0] for mark in ";\t"):
        raise UserError(f"{shown}: line 1: columns must be separated by commas, but are by {show_value(columns[0])}")
    for column in columns:
        if column not in known:
            rule = f"is no column: the columns are {', '.join(COLUMNS)}, and may be {', '.join(FURTHER_COLUMNS)}"
            raise UserError(f"{shown}: line 1: {show_value(column)} {rule}")
        if columns.count(column) > 1:
            raise UserError(f"{shown}: line 1: has the column {column} twice")
    if missing := [column for column in COLUMNS if column not in columns]:
        raise UserError(f"{shown}: line 1: lacks {', '.join(missing)}: the columns are {', '.join(COLUMNS)}")
    return columns


def _row(columns: Sequence[str], values: Sequence[str], where: str) -> dict[str, str]:
    """The values of one row by column."""
    if len(values) != len(columns):
        hint = "; put a layout with commas between quotation marks" if len(values) > len(columns) else ""
        raise UserError(f"{where}: has {len(values)} values in {len(columns)} columns{hint}")
    row = {column: value.strip() for column, value in zip(columns, values, strict=True)}
    for column, value in row.items():
        if not value and column not in _MAY_BE_EMPTY:
            raise ConfigError(column, value, "must have a value", where)
    return row


def _gpu(text: str, known: Gpu | None) -> Gpu:
    """The GPU of a row: that of the cluster which is given, else of the catalogue."""
    if known is None:
        return find_gpu(text, "gpu")
    if text.lower() != known.name.lower():
        raise ArgumentError("gpu", text, f"is not that of the cluster, {known.name}")
    return known


def _step(row: Mapping[str, str], where: str, models: dict[str, ModelSpec]) -> MeasuredStep:
    """One row; `models` has those that are read already, by config."""
    config = row["model_config"]
    if config not in models:
        models[config] = _parsed(row, "model_config", where, _model)
    try:
        return MeasuredStep(
            where=where,
            model=models[config],
            setup=_setup(row, where),
            layout=_layout(row, where),
            power_watts=_parsed(row, "power_watts", where, lambda text: _number(text, "power_watts", "watts")),
            seconds=_parsed(row, "seconds", where, lambda text: _number(text, "seconds", "seconds")),
        )
    except ArgumentError as error:
        raise _in_row(error, row, where) from None


def _model(config: str) -> ModelSpec:
    model = read_model(config)
    if isinstance(model, ForeignConfig):
        family = model.model_type or "its family"
        raise UserError(f"{show_name(config)}: {family} goes through transformers, and no step of it is estimated")
    return model


def _setup(row: Mapping[str, str], where: str) -> Setup:
    def whole(column: str) -> Any:
        return _parsed(row, column, where, lambda text: parse_whole_number(text, column))

    given = {
        "sequence_length": whole("seq_len"),
        "micro_batch_size": whole("micro_batch_size"),
        "micro_batches": whole("micro_batches"),
        "recompute": parse_recompute(row["recompute"]),
        "execution": row["execution"],
        "precision": row.get("precision") or None,
        "optimizer": row.get("optimizer") or None,
        "loss_chunk": whole("loss_chunk"),
        "clip_gradients": _parsed(row, "clip_gradients", where, _switch),
    }
    return Setup(**{field: value for field, value in given.items() if value is not None})


def _layout(row: Mapping[str, str], where: str) -> Layout | None:
    """The layout; None of one GPU without axes."""
    num_gpus = _parsed(row, "num_gpus", where, lambda text: parse_num_gpus(text, "num_gpus"))
    if not row["layout"]:
        if num_gpus != 1:
            rule = f"must say how the step is spread over {num_gpus} GPUs, as fsdp={num_gpus}; dp=N is data parallel"
            raise ConfigError("layout", "", rule, where)
        return None
    return Layout(**parse_layout(row["layout"], "layout"), num_gpus=num_gpus)


def _number(text: str, column: str, unit: str) -> float:
    """A number above 0 in plain digits; seconds up to `_LONGEST_STEP`."""
    try:
        number = float(text) if text.isascii() and "_" not in text else -1.0
    except ValueError:
        number = -1.0
    if not 0 < number <= _LONGEST_STEP:
        raise ArgumentError(column, text, f"must be a number of {unit} above 0, at most {_LONGEST_STEP:g}")
    return number


def _switch(text: str) -> bool:
    if text not in _SWITCH:
        raise ArgumentError("clip_gradients", text, "must be on or off")
    return _SWITCH[text]


def _parsed(row: Mapping[str, str], column: str, where: str, parse: Callable[[str], _T]) -> Any:
    """The value of a column; None where it is empty. Errors get the row, and the column where they lack it."""
    text = row.get(column, "")
    if not text:
        return None
    try:
        return parse(text)
    except ArgumentError as error:
        raise _in_row(error, row, where) from None
    except UserError as error:
        raise UserError(f"{where}: {column}: {error}") from None


def _in_row(error: ArgumentError, row: Mapping[str, str], where: str) -> UserError:
    """The error with file, row and column; of an axis of the layout, with the layout as it is typed."""
    axis = error.field.removeprefix("layout ")
    typed = row["layout"] if axis != error.field or _COLUMN_OF.get(axis) == "layout" else None
    if typed is None:
        return by_column(ConfigError(error.field, error.value, error.rule, where))
    return ConfigError("layout", typed, f"{axis} = {show_value(error.value)}: {error.rule}", where)


def by_column(error: ConfigError) -> ConfigError:
    """The error of a row with the column in place of the library's argument."""
    column = _COLUMN_OF.get(error.field, error.field)
    if column == error.field:
        return error
    if column == "layout":
        return ConfigError(f"layout: {error.field}", error.value, error.rule, error.file)
    return ConfigError(column, error.value, error.rule, error.file)
