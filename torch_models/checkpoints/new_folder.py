"""A folder that is written whole or not at all. Torch-free."""

import os
import secrets
import shutil
from pathlib import Path

from torch_models.errors import ArgumentError, CheckpointError, show_name


def folder_to_create(folder: object) -> Path:
    """Return the path of a folder that does not exist or is empty, with links followed.

    Raises `UserError` if something stands there, or if the folder cannot be created.
    """
    if not isinstance(folder, str | os.PathLike) or not isinstance(os.fspath(folder), str) or not os.fspath(folder):
        raise ArgumentError("folder", folder, "must be a path")
    shown = show_name(os.fspath(folder))
    try:
        path = Path(os.path.realpath(folder))
        if path.is_dir():
            if any(path.iterdir()):
                raise CheckpointError(f"{shown}: is not empty; give a new folder")
            if path.is_mount():
                raise CheckpointError(f"{shown}: is a mount point; give a folder within it")
        elif os.path.lexists(path):
            raise CheckpointError(f"{shown}: is a file; give a new folder")
        parent = next(ancestor for ancestor in path.parents if os.path.lexists(ancestor))
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{shown}: cannot be created: {_reason(error)}") from None
    if not parent.is_dir():
        raise CheckpointError(f"{shown}: cannot be created: {parent} is a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise CheckpointError(f"{shown}: cannot be created: no permission to write in {parent}")
    return path


def create_temporary(folder: Path) -> Path:
    """Create a folder beside `folder`, with a name of its own that no reader looks for, and return it."""
    temporary = folder.parent / f".{folder.name[:200]}.{secrets.token_hex(4)}.part"
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be created: {_reason(error)}") from None
    return temporary


def rename(temporary: Path, folder: Path) -> None:
    """Give the temporary folder its name, unless something stands there by now."""
    try:
        temporary.rename(folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be created: {_reason(error)}") from None


def remove(temporary: Path) -> None:
    """Remove the temporary folder with all in it, if it is still there."""
    shutil.rmtree(temporary, ignore_errors=True)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
