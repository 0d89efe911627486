"""Training runs in a file of comma-separated values, one run a line:

parameters,tokens,loss
74e6,1.5e9,3.41
...
"""  # noqa: D415

import csv
import io
import os
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import NamedTuple

from counting.cost.fit.columns import FITTED_QUANTITIES, find_columns
from counting.cost.fit.runs import TrainedRun
from counting.cost.scaling_laws import FLOPS_PER_PARAMETER_AND_TOKEN
from torch_models.errors import ConfigError, UserError, show_name, show_value

MOST_RUNS = 2000  # a fit of so many takes minutes
MAX_RUNS_BYTES = 5_000_000
LARGEST_NUMBER = 1e36
_RULES = {
    "parameters": "must be a number above 0 in plain digits, as 70e6",
    "tokens": "must be a number above 0 in plain digits, as 1.4e9",
    "training_flops": "must be a number above 0 in plain digits, as 6e18",
    "loss": "must be a loss above 0 in plain digits, as 3.41",
}
_DERIVED = {
    "training_flops": "training_flops = 6 × parameters × tokens",
    "tokens": "tokens = training_flops / (6 × parameters)",
    "parameters": "parameters = training_flops / (6 × tokens)",
}


class RunsFile(NamedTuple):
    """The runs of a file, which column each number was read from, and the formula of the one that has none."""

    runs: tuple[TrainedRun, ...]
    columns: dict[str, str]
    derived: str | None


def read_runs(path: str | os.PathLike[str], columns: Mapping[str, str] | None = None) -> RunsFile:
    """The runs in the file `path`; `columns` maps parameters, tokens, training_flops or loss to the name of a column.

    Other columns are not read. Raises UserError with file, line and column.
    """
    shown = show_name(os.fspath(path))
    lines = csv.reader(io.StringIO(_text(path, shown)), strict=True)
    runs: list[TrainedRun] = []
    try:
        header = next((values for values in lines if any(value.strip() for value in values)), [])
        line = lines.line_num
        if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
            raise UserError(
                f"{shown}: line {line}: columns must be separated by commas, but are by {show_value(header[0])}"
            )
        places = find_columns(header, columns or {}, shown, line)
        first = lines.line_num + 1
        for values in lines:
            if any(value.strip() for value in values):
                if len(runs) == MOST_RUNS:
                    raise UserError(f"{shown}: line {first}: a file has at most {MOST_RUNS:,} runs: leave some out")
                if len(values) != len(header):
                    rule = f"has {len(values)} values in {len(header)} columns"
                    raise UserError(f"{shown}: line {first}: {rule}")
                runs.append(_run(values, places, header, first, f"{shown}: line {first}"))
            first = lines.line_num + 1
    except csv.Error as error:
        raise UserError(f"{shown}: line {lines.line_num}: not comma-separated values: {error}") from None
    if not runs:
        raise UserError(f"{shown}: has no runs below its columns")
    derived = next((formula for quantity, formula in _DERIVED.items() if quantity not in places), None)
    return RunsFile(tuple(runs), {quantity: header[place].strip() for quantity, place in places.items()}, derived)


def _text(path: str | os.PathLike[str], shown: str) -> str:
    """The text of the file, without the mark that some programs put before UTF-8, and with line feeds alone."""
    try:
        if not Path(path).is_file():
            raise UserError(f"{shown}: {_no_file(path)}")
        with Path(path).open("rb") as file:
            content = file.read(MAX_RUNS_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{shown}: cannot be read: {reason}") from None
    if len(content) > MAX_RUNS_BYTES:
        raise UserError(f"{shown}: a file of runs has at most {MAX_RUNS_BYTES:,} bytes and {MOST_RUNS:,} runs")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{shown}: is not text in UTF-8: save it as comma-separated values in that encoding") from None
    if not text.strip():
        raise UserError(f"{shown}: is empty: its first line must name the columns, as parameters,tokens,loss")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _no_file(path: str | os.PathLike[str]) -> str:
    """Why `path` cannot be read, if it is no file."""
    if os.fspath(path) == "-":
        return "standard input is not read: write the runs to a file, and name it"
    if not Path(path).exists():
        return "no such file"
    return "must be a file of runs" if Path(path).is_dir() else "pipes and devices are not read: name a file of runs"


def _run(values: Sequence[str], places: Mapping[str, int], header: Sequence[str], line: int, where: str) -> TrainedRun:
    """One run; N, D or C, where it has no column, follows from C = 6 N D."""
    read = {
        quantity: _number(values[places[quantity]].strip(), quantity, header[places[quantity]].strip(), where)
        for quantity in FITTED_QUANTITIES
        if quantity in places
    }
    per_pair = FLOPS_PER_PARAMETER_AND_TOKEN
    if "training_flops" not in read:
        read["training_flops"] = per_pair * read["parameters"] * read["tokens"]
    elif "tokens" not in read:
        read["tokens"] = read["training_flops"] / (per_pair * read["parameters"])
    elif "parameters" not in read:
        read["parameters"] = read["training_flops"] / (per_pair * read["tokens"])
    return TrainedRun(line=line, **read)


def _number(text: str, quantity: str, column: str, where: str) -> float:
    try:
        number = float(text) if text.isascii() and "_" not in text else -inf
    except ValueError:
        number = -inf
    if LARGEST_NUMBER < number < inf:
        raise ConfigError(column, text, f"must be at most {LARGEST_NUMBER:g}", where)
    if not 0 < number <= LARGEST_NUMBER:
        raise ConfigError(column, text, _RULES[quantity], where)
    return number
