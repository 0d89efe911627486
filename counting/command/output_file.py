"""Writes files completely or not at all."""

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from torch_models.errors import UserError, show_name


def refuse_unwritable(path: str, *, overwrite: bool) -> None:
    """Check early what `write_whole` needs; raises UserError if the file exists, is a folder or has no folder."""
    target = Path(path)
    shown = show_name(path)
    try:
        os.fsencode(path)
        if "\0" in path:
            raise ValueError("a name has no null byte")
        folder, parent_is_folder = target.is_dir(), target.parent.is_dir()
        exists = os.path.lexists(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{shown}: cannot be written: {_reason(error)}") from None
    if folder:
        raise UserError(f"{shown}: is a folder; name a file in it")
    if not parent_is_folder:
        raise UserError(f"{shown}: there is no folder {show_name(str(target.parent))}")
    if exists and not overwrite:
        raise UserError(f"{shown}: exists already; give --force to replace it, or another name")
    if exists and not (target.is_file() and not target.is_symlink()):
        raise UserError(f"{shown}: is not a regular file, and is not replaced")


def write_whole(path: str, content: str | bytes, *, overwrite: bool) -> None:
    """Write text or bytes to `path` in one step; without `overwrite`, an existing file is never replaced."""
    refuse_unwritable(path, overwrite=overwrite)
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=Path(path).parent)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, _mode(path))
            file.write(content if isinstance(content, bytes) else content.encode())
            file.flush()
            os.fsync(descriptor)
        if overwrite:
            os.replace(temporary, path)
        else:
            _rename_to_new(temporary, path)
    except FileExistsError:
        raise UserError(f"{show_name(path)}: exists already; give --force to replace it, or another name") from None
    except OSError as error:
        raise UserError(f"{show_name(path)}: cannot be written: {_reason(error)}") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def _rename_to_new(temporary: str, path: str) -> None:
    """Rename, but raise FileExistsError if `path` exists by now; a plain rename would replace it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(temporary, path)


def _mode(path: str) -> int:
    """The permissions of the file to replace, or the default ones of a new file."""
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except FileNotFoundError:
        current = os.umask(0)
        os.umask(current)
        return 0o666 & ~current


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
