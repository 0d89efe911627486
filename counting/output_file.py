"""Files that are written whole or not at all."""

import contextlib
import os
import tempfile
from pathlib import Path

from torch_models.errors import UserError


def refuse_unwritable(path: str, *, overwrite: bool) -> None:
    """Say early what `write_whole` would say late: the file exists, is a folder, or has no folder to be in."""
    target = Path(path)
    try:
        os.fsencode(path)
        if "\0" in path:
            raise ValueError("a name has no null byte")
        folder, parent_is_folder = target.is_dir(), target.parent.is_dir()
        exists = os.path.lexists(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path[:200]!r}: cannot be written: {error}") from None
    if folder:
        raise UserError(f"{path}: is a folder; name a file in it")
    if not parent_is_folder:
        raise UserError(f"{path}: there is no folder {target.parent}")
    if exists and not overwrite:
        raise UserError(f"{path}: exists already; give --force to replace it, or another name")


def write_whole(path: str, text: str, *, overwrite: bool) -> None:
    """Write `text` to `path` in one step; without `overwrite`, an existing file is never replaced."""
    refuse_unwritable(path, overwrite=overwrite)
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=Path(path).parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, 0o666 & ~_umask())
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        if overwrite:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)  # unlike a rename, fails where the file has come to exist
    except FileExistsError:
        raise UserError(f"{path}: exists already; give --force to replace it, or another name") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
