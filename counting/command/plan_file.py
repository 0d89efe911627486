"""A plan: flags in a TOML file, each under its name. Flags on the command line override those of the plan.

model_config = "deepseek_v3"
tokens = "14.8T"
gpus = ["H800"]
gpu_prices = { H800 = 2.0 }

A file whose name ends in .json has the same keys in an object, or is a document of --json, which repeats
its plan; of that, files that were written are left to the command line.
"""

import argparse
import difflib
import json
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from counting.command.checks import ALTERNATIVES, given_flags
from torch_models.errors import ConfigError, UserError, show_name

MAX_PLAN_BYTES = 1_000_000
LISTS = (
    "gpus",
    "ignore_fields",
    "stage_layers",
    "scaling_law",
)  # flags with commas between their values; in a plan also an array
NOT_IN_A_PLAN = ("plan", "help", "version")
# Flags of what the run whose result is a plan prints or writes; another run has files of its own.
FILES_WRITTEN = ("json", "markdown", "trace", "trace_memory", "csv", "figure", "figure_size", "html", "force")
TABLES = ("gpu_prices", "layout")  # flags with name=value pairs; in a plan also a table


def plan_as_arguments(path: str, parser: argparse.ArgumentParser) -> list[str]:
    """The plan as command-line arguments; keys have underscores or hyphens.

    Raises `UserError` with file, key and rule.
    """
    shown = show_name(path)
    actions = {
        action.dest: action
        for action in parser._actions
        if action.default is not argparse.SUPPRESS and action.dest != "plan"
    }
    keys: dict[str, str] = {}
    arguments: list[str] = []
    for key, value in _read(path, shown).items():
        flag = key.replace("-", "_")
        if flag in NOT_IN_A_PLAN:
            raise ConfigError(key, value, "is a flag for the command line, not for a plan", shown)
        if flag not in actions:
            raise ConfigError(key, value, f"is not a flag; did you mean {_nearest(flag, actions)}?", shown)
        if flag in keys:
            raise ConfigError(key, value, f"is given twice, also as {keys[flag]}", shown)
        keys[flag] = key
        arguments += _typed(actions[flag], key, value, shown)
    return arguments


def without_files(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of a run without those of the files that it wrote."""
    return {flag: value for flag, value in plan.items() if flag not in FILES_WRITTEN}


def with_plan(typed: argparse.Namespace, planned: argparse.Namespace) -> argparse.Namespace:
    """The typed flags and those of the plan; `from_plan` contains the names of the latter.

    A typed flag also replaces its alternatives in the plan: --gpu_hours replaces an MFU.
    """
    won = set(given_flags(typed))
    for row in ALTERNATIVES:
        if won.intersection(row):
            won.update(row)
    taken = {flag: value for flag, value in given_flags(planned).items() if flag not in won}
    return argparse.Namespace(**vars(typed) | taken | {"from_plan": frozenset(taken)})


def _read(path: str, shown: str) -> dict[str, Any]:
    kind = "JSON" if path.lower().endswith(".json") else "TOML"
    try:
        info = Path(path).stat()
        if not stat.S_ISREG(info.st_mode):
            raise UserError(f"{shown}: must be a file of TOML or JSON, but is {_kind(info.st_mode)}")
        if info.st_size > MAX_PLAN_BYTES:
            raise UserError(f"{shown}: {info.st_size} bytes; a plan has at most {MAX_PLAN_BYTES}")
        text = Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{shown}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{shown}: not valid {kind}: must be UTF-8, but byte {error.start} is not") from None
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UserError(f"{shown}: cannot be read: {reason}") from None
    try:
        return _from_json(text, shown) if kind == "JSON" else _from_toml(text, shown)
    except RecursionError:
        raise UserError(f"{shown}: not valid {kind}: nested too deeply") from None


def _from_toml(text: str, shown: str) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(text)
    except ValueError as error:  # from tomllib, or from Python for a number with too many digits
        raise UserError(f"{shown}: {_at_line(_without_python(str(error)), text)}") from None


def _from_json(text: str, shown: str) -> dict[str, Any]:
    try:
        plan = json.loads(text, object_pairs_hook=_once_each)
    except ValueError as error:
        raise UserError(f"{shown}: not valid JSON: {_without_python(str(error))}") from None
    if isinstance(plan, dict) and ("schema_version" in plan or isinstance(plan.get("plan"), dict)):
        document = plan.get("plan")
        plan = document and without_files(document)
    if not isinstance(plan, dict):
        raise UserError(f"{shown}: must be an object of flags, or a document of --json with its plan")
    return plan


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of a JSON object; raises ValueError for a key that is given twice, as TOML's parser does."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)} is given twice")
    return found


def _without_python(message: str) -> str:
    """The message; for a number that is too long, without Python's advice to change its own limit."""
    return message.partition("; use sys.")[0]


def _at_line(message: str, text: str) -> str:
    """The parser's message, with the line number first."""
    reason, _, place = message.rpartition(" (at ")
    found = re.fullmatch(r"line (\d+), column (\d+)\)", place)
    if found is not None:
        return f"line {found[1]}, column {found[2]}: not valid TOML: {reason}"
    if place == "end of document)":
        return f"line {max(len(text.splitlines()), 1)}, at its end: not valid TOML: {reason}"
    return f"not valid TOML: {message}"


def _typed(action: argparse.Action, key: str, value: object, shown: str) -> list[str]:
    """One flag of the plan as arguments."""
    flag = action.option_strings[0]
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ConfigError(key, value, "must be true or false", shown)
        return [flag] * value
    if action.nargs == "?" and isinstance(value, bool):
        return [flag] * value
    if action.nargs == "+":
        values = value if isinstance(value, list) else [value]
        return [f"{flag}={_text(key, inner, shown)}" for inner in values]
    if isinstance(value, list) and action.dest in LISTS:
        return [f"{flag}={','.join(_text(key, inner, shown) for inner in value)}"]
    if isinstance(value, Mapping) and action.dest in TABLES:
        pairs = (f"{name}={_text(f'{key}.{name}', inner, shown)}" for name, inner in value.items())
        return [f"{flag}={','.join(pairs)}"]
    return [f"{flag}={_text(key, value, shown)}"]


def _text(key: str, value: object, shown: str) -> str:
    """A text or a number, as it would be typed on the command line."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(key, value, "must be a text or a number, as on the command line", shown)
    return value if isinstance(value, str) else repr(value)


def _nearest(flag: str, known: Iterable[str]) -> str:
    (nearest,) = difflib.get_close_matches(flag, list(known), n=1, cutoff=0)
    return nearest


def _kind(mode: int) -> str:
    return "a folder" if stat.S_ISDIR(mode) else "no regular file"
