"""Which files of a checkpoint folder have the model's weights, by their names, or why none is read. Torch-free.

They are `model.safetensors`, or the shards that `model.safetensors.index.json` lists. A folder with neither may have
one safetensors file of another name, or all shards of one set: `X-00001-of-00002.safetensors` and so on.
"""

import os
import re
import stat
from pathlib import Path

from torch_models.errors import show_name

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
POINTER = b"version https://git-lfs"  # how a file begins that Git LFS has not replaced by its content
LONGEST_POINTER = 1024  # bytes
SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<shards>\d{5})\.safetensors", re.DOTALL)
# How the names of files begin that are not the model's weights under the names of Hugging Face -> what they are.
OTHERS = {
    "adapter": "has the weights of an adapter, not the model's",
    "consolidated": "has, by its name, the tensor names of the publisher's own code",
}


def weights_without_index(folder: Path) -> list[Path] | str:
    """The safetensors files with the model's weights, in the order of their names, or why there are none to read.

    Call it only if there is neither `model.safetensors` nor an index to read. The list is empty if the folder has no
    safetensors file.
    """
    for name in (SINGLE_FILE, INDEX_FILE):
        if os.path.lexists(folder / name):
            return f"{name} {_why_unreadable(folder / name)}"
    # Names with a dot in front belong to the file system, such as the `._X` that macOS writes beside each file.
    found = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("."))
    files = [path for path in found if _what_else(path) is None]
    if not files:
        return f"{show_name(found[0].name)} {_what_else(found[0])}" if found else []
    shards = [SHARD.fullmatch(path.name) for path in files]
    sets = {
        (shard["stem"], int(shard["shards"])) if shard else (path.name, 1)
        for shard, path in zip(shards, files, strict=True)
    }
    if len(sets) > 1:
        names = ", ".join(show_name(path.name) for path in files[:3]) + (", …" if len(files) > 3 else "")
        return f"{names} are several files, and there is no {INDEX_FILE}, which says what belongs to the model"
    for path in files:
        if not is_weights(path):
            return f"{show_name(path.name)} {_why_unreadable(path)}"
    ((stem, count),) = sets
    there = {int(shard["number"]) for shard in shards if shard}
    for number in range(1, count + 1) if there else ():
        if number not in there:
            name = show_name(f"{stem}-{number:05}-of-{count:05}.safetensors")
            return f"{name} is not there, and there is no {INDEX_FILE}"
    if len(files) > count:
        rule = f"is one of {len(files)} files, whose numbers must be from 1 to {count}"
        return f"{show_name(files[0].name)} {rule}, and there is no {INDEX_FILE}"
    return files


def why_nothing_is_read(folder: Path) -> str | None:
    """Say why a folder that has weights, but none to read, is not read; None if it has no weights.

    Call it only for such a folder. The reason begins with the name of a file.
    """
    files = weights_without_index(folder)
    if isinstance(files, str):
        return files
    pickled = pickles_in(folder)
    return f"{show_name(pickled[0])} is a pickle, which is never read" if pickled else None


def pickles_in(folder: Path) -> list[str]:
    """Names of the files in `folder` that hold weights as pickles, which are never read."""
    return sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))


def is_weights(file: Path) -> bool:
    """Whether `file` is a regular file and not a pointer of Git LFS."""
    if not file.is_file():
        return False
    try:
        if file.stat().st_size > LONGEST_POINTER:
            return True
        return not file.read_bytes().startswith(POINTER)
    except OSError:
        return True  # reading it will say why it cannot be read


def _what_else(file: Path) -> str | None:
    return next((what for start, what in OTHERS.items() if file.name.lower().startswith(start)), None)


def _why_unreadable(file: Path) -> str:
    """Say what `file` is, for which `is_weights` is false. It is never opened: a pipe or a device would not end."""
    try:
        mode = file.stat().st_mode
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if stat.S_ISREG(mode):
        return "is a pointer of Git LFS, not the weights"
    return "is a folder, not a file" if stat.S_ISDIR(mode) else "is no regular file"
