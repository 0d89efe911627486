"""Reads a config.json from a path, its folder, or by its name in `configs/`: JSON of limited size, with infinities."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from torch_models.errors import ConfigError, UserError, show_json_error, show_value
from torch_models.fields.bundled import bundled_data

MAX_CONFIG_BYTES = 4_000_000
CONFIG_FILE = "config.json"  # in a folder


def read_config(path_or_name: str | os.PathLike[str]) -> tuple[str, dict[str, Any]]:
    """Return the path or name as given, and the fields of the JSON object in the file.

    Of a folder, the file is its config.json, and the path is that of the file.

    Raises `UserError` if the file cannot be read, is too large, or is not one JSON object without duplicate fields.
    """
    shown = _file_of(os.fspath(path_or_name))
    content = _read_bytes(shown)
    try:
        fields = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_refuse_duplicates)
    except UserError as error:
        raise UserError(f"{shown}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{shown}: not valid JSON: {show_json_error(error)}") from None
    if not isinstance(fields, dict):
        raise UserError(f"{shown}: must be a JSON object of config fields, but is {show_value(fields)}")
    return shown, fields


def _file_of(shown: str) -> str:
    """Return the path of the config.json if `shown` is a folder, which must have one; any other path as it is."""
    if not os.path.isdir(shown):
        return shown
    file = os.path.join(shown, CONFIG_FILE)
    if not os.path.lexists(file):
        raise UserError(f"{shown}: is a folder without a {CONFIG_FILE}")
    return file


def _read_bytes(shown: str) -> bytes:
    try:
        info = os.stat(shown)
    except (OSError, ValueError) as error:
        bundled = {entry.name: entry for entry in bundled_data().iterdir() if entry.name.endswith("_config.json")}
        for name in (shown, f"{shown}.json", f"{shown}_config.json"):
            if name in bundled:
                return bundled[name].read_bytes()
        if isinstance(error, FileNotFoundError):
            raise UserError(
                f"{shown or repr(shown)}: no such file, and configs/ has only {', '.join(sorted(bundled))}"
            ) from None
        raise UserError(f"{shown[:200]}: cannot be read: {_reason(error)}") from None
    if not stat.S_ISREG(info.st_mode):
        raise UserError(f"{shown}: must be a file of JSON, but is {_kind(info.st_mode)}")
    if info.st_size > MAX_CONFIG_BYTES:
        raise UserError(f"{shown}: {info.st_size} bytes; a config has at most {MAX_CONFIG_BYTES}")
    try:
        return Path(shown).read_bytes()
    except OSError as error:
        raise UserError(f"{shown}: cannot be read: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _kind(mode: int) -> str:
    return "a folder" if stat.S_ISDIR(mode) else "no regular file"


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for field, value in pairs:
        if field in fields:
            raise ConfigError(field, value, f"the field occurs twice; its first value is {show_value(fields[field])}")
        fields[field] = value
    return fields
