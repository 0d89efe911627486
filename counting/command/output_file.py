"""Writes files, one or a folder of them, completely or not at all, and none that another flag reads or writes too."""

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from torch_models.errors import UserError, show_name
from torch_models.fields.bundled import bundled_data
from torch_models.fields.file import CONFIG_FILE

_OF_A_CHECKPOINT = (CONFIG_FILE, "*.safetensors", "*.safetensors.index.json")
_ENDINGS_OF_FILES = {".csv", ".html", ".json", ".md", ".pdf", ".png", ".svg"}  # of what else can be written


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
    write_together({path: content}, overwrite=overwrite)


def write_together(files: Mapping[str, str | bytes], *, folder: str | None = None, overwrite: bool) -> None:
    """Write all files, paths with their contents, or none; the `folder` of some of them is made if it is not there.

    All contents are on the disk under other names before the first file has its own. Without `overwrite` no file is
    replaced. If a file cannot have its name, those that were not there before are removed again.
    """
    made, parts, named = False, dict[str, str](), list[str]()
    path = ""
    try:
        if folder is not None:
            path = folder
            refuse_unwritable_folder(folder, (), overwrite=overwrite)
            if not os.path.isdir(folder):
                os.mkdir(folder)
                made = True
        for path, content in files.items():
            refuse_unwritable(path, overwrite=overwrite)
            descriptor, parts[path] = tempfile.mkstemp(prefix=".", suffix=".part", dir=Path(path).parent)
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, _mode(path))
                file.write(content if isinstance(content, bytes) else content.encode())
                file.flush()
                os.fsync(descriptor)
        for path, part in parts.items():
            is_new = not os.path.lexists(path)
            if overwrite:
                os.replace(part, path)
            else:
                _rename_to_new(part, path)
            if is_new:
                named.append(path)
    except BaseException as error:
        for each in (*named, *parts.values()):
            with contextlib.suppress(OSError):
                os.unlink(each)
        if made and folder is not None:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        if isinstance(error, FileExistsError):
            raise UserError(f"{show_name(path)}: exists already; give --force to replace it, or another name") from None
        if isinstance(error, OSError):
            raise UserError(f"{show_name(path)}: cannot be written: {_reason(error)}") from None
        raise
    for part in parts.values():  # a hard link leaves the other name
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


def refuse_unwritable_folder(path: str, names: Iterable[str], *, overwrite: bool) -> None:
    """Check early what `write_together` needs of the folder and of the files with these names in it.

    Raises UserError if there is a file of that name, if the folder is not there and has the name of a file by its
    ending, or cannot be made because the one that it is in is not there either, if it may not be written, or if one
    of the files exists.
    """
    shown = show_name(path)
    try:
        os.fsencode(path)
        if "\0" in path:
            raise ValueError("a name has no null byte")
        folder = Path(path)
        exists, is_folder, parent = os.path.lexists(path), folder.is_dir(), folder.parent
        parent_is_folder = parent.is_dir()
    except (OSError, ValueError) as error:
        raise UserError(f"{shown}: cannot be written: {_reason(error)}") from None
    if not exists and (ending := folder.suffix.lower()) in _ENDINGS_OF_FILES:
        raise UserError(f"{shown}: {ending} is the ending of one file; name a folder for several files")
    if exists and not is_folder:
        raise UserError(f"{shown}: is not a folder; name a folder for several files")
    if not exists and not parent_is_folder:
        raise UserError(f"{shown}: there is no folder {show_name(str(parent))}")
    if not os.access(folder if exists else parent, os.W_OK | os.X_OK):
        raise UserError(f"{shown}: cannot be written: {os.strerror(errno.EACCES)}")
    for name in names if exists else ():
        refuse_unwritable(os.path.join(path, name), overwrite=overwrite)


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


def refuse_shared_files(
    written: Mapping[str, Sequence[str] | str | None], read: Mapping[str, Sequence[str] | str | None]
) -> None:
    """Raises UserError if two flags of `written` name one file, or one of them names a file of `read`.

    Both have the names of files by flag; None is a flag that is not given.
    """
    outputs = [(flag, name) for flag, names in written.items() for name in _names(names)]
    for number, (flag, name) in enumerate(outputs):
        for other, same in outputs[:number]:
            if _is_one_file(name, same):
                raise UserError(f"{show_name(name)}: {other} and {flag} name one file: name another for one of them")
        for other, names in read.items():
            if any(_is_one_file(name, same) for same in _names(names)):
                raise UserError(
                    f"{show_name(name)}: {flag} would replace what {other} reads: name another file for {flag}"
                )


def files_of_config(config: str) -> Iterator[str]:
    """The files that may be read of a model: a path, those of a checkpoint's folder, or a bundled config."""
    yield config
    try:
        folder = Path(config)
        if folder.is_dir():
            yield from (str(file) for pattern in _OF_A_CHECKPOINT for file in folder.glob(pattern))
    except (OSError, ValueError):  # no name of a file, as its reader will say
        return
    if os.path.basename(config) == config:
        yield from (str(bundled_data() / f"{config}{end}") for end in ("", ".json", "_config.json"))


def _names(names: Sequence[str] | str | None) -> Sequence[str]:
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else names


def _is_one_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # one of them is not there
        pass
    try:
        return os.path.realpath(one) == os.path.realpath(other)
    except (OSError, ValueError):
        return False
