"""Reads the headers of a checkpoint folder's safetensors files: names, dtypes and shapes, without a weight. Torch-free.

Which files these are is decided in weight_files.py. A file begins with the length of its header in 8 bytes,
little-endian; the header is a JSON object of tensor names, each with `dtype`, `shape` and `data_offsets`; the tensors'
bytes follow without gaps (https://huggingface.co/docs/safetensors, "Format"). Nothing is downloaded.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from torch_models.checkpoints.weight_files import (
    INDEX_FILE,
    POINTER,
    SINGLE_FILE,
    is_weights,
    pickles_in,
    weights_without_index,
)
from torch_models.errors import CheckpointError, show_json_error, show_name, show_value

# Bits per number of every dtype of the format.
DTYPE_BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32},
    **{"U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
LENGTH_BYTES = 8  # of the number at the beginning of a file that says how long its header is
LONGEST_HEADER = 100_000_000  # bytes; the limit of the format, used for the index too


class StoredTensor(NamedTuple):
    """A tensor's entry in a file header; `dtype` is the name that safetensors uses, such as BF16."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many numbers of `dtype` the tensor has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in its file."""
        return self.numel * DTYPE_BITS[self.dtype] // 8


class Headers(NamedTuple):
    """The tensors of a checkpoint folder by stored name."""

    source: Path  # the one file, the index, or the first of several shards without an index
    tensors: dict[str, StoredTensor]  # of the files that are there
    absent: dict[str, str]  # name -> file, for the tensors in the index whose file is not there
    total_size: int | None  # bytes of all tensors by the index; None where it does not say


def read_headers(folder: Path) -> Headers | None:
    """Return the headers of the weights in `folder`; None if there is neither a file of weights to read nor an index.

    A file that is only a pointer of Git LFS is not there. Raises `CheckpointError` with file and tensor if a file is
    broken, if index and shards differ, or if shards without an index have a tensor twice.
    """
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if is_weights(single):  # before the index, as transformers does
        return Headers(single, read_header(single), {}, None)
    if index.is_file():
        return _indexed(index)
    files = weights_without_index(folder)
    return _together(files) if files and not isinstance(files, str) else None


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Map the stored name of every tensor of the checkpoint to its header entry.

    Raises `CheckpointError` as `read_headers`, and also if there are no weights or a shard is absent.
    """
    headers = read_headers(folder)
    if headers is None:
        if (folder / SINGLE_FILE).is_file():
            raise _is_pointer(folder / SINGLE_FILE)
        why, pickled = weights_without_index(folder), pickles_in(folder)
        if isinstance(why, str):
            raise CheckpointError(f"{folder}: has no weights to read: {why}")
        hint = f"; {pickled[0]} is a pickle, which is never read: convert it to safetensors" if pickled else ""
        raise CheckpointError(f"{folder}: contains neither {SINGLE_FILE} nor {INDEX_FILE}{hint}")
    for name, shard in headers.absent.items():
        file = folder / shard
        raise _is_pointer(file) if file.is_file() else _not_a_file(headers.source, name, shard)
    return headers.tensors


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Return the entries of one safetensors file by name.

    Raises `CheckpointError` if the header is not of the format, or does not describe the bytes of the file.
    """
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            length = int.from_bytes(opened.read(LENGTH_BYTES), "little")
            if size < LENGTH_BYTES or not 2 <= length <= min(LONGEST_HEADER, size - LENGTH_BYTES):
                most = f"{LONGEST_HEADER} bytes and the file's {size}"
                raise _broken(file, f"its header would have {length} bytes, and the limits are {most}")
            content = opened.read(length)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    header = _json(content, f"{_broken(file, 'its header')}")
    if not isinstance(header, dict):
        raise _broken(file, f"its header must be a JSON object, but is {show_value(header)}")
    data = size - LENGTH_BYTES - length
    entries: list[tuple[int, int, str]] = []
    tensors: dict[str, StoredTensor] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        tensors[name], begin, end = _entry(file, name, entry, data)
        entries.append((begin, end, name))
    _check_no_gaps(file, entries, data)
    return tensors


def _entry(file: Path, name: str, entry: Any, data: int) -> tuple[StoredTensor, int, int]:
    """Return the entry of one tensor and the range of its bytes among the `data` bytes after the header."""
    if not isinstance(entry, dict):
        raise _broken(file, f"{show_name(name)} must be an object, but is {show_value(entry)}")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _broken(file, f"{show_name(name)} has dtype {show_value(dtype)}, which is not of the format")
    if not _are_sizes(shape):
        rule = "which must be a list of whole numbers from 0"
        raise _broken(file, f"{show_name(name)} has shape {show_value(shape)}, {rule}")
    if not (_are_sizes(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        rule = "which must be its beginning and its end in bytes"
        raise _broken(file, f"{show_name(name)} has data_offsets {show_value(offsets)}, {rule}")
    tensor, (begin, end) = StoredTensor(file, dtype, tuple(shape)), offsets
    if end > data:
        rule = f"ends at byte {show_value(end)} of the data, and the file has only {data}: it is not whole"
        raise _broken(file, f"{show_name(name)} {rule}")
    bits = tensor.numel * DTYPE_BITS[dtype]
    if bits != (end - begin) * 8:
        needed = f"{dtype} of shape {show_value(tensor.shape)} has {show_value(bits)} bits"
        raise _broken(file, f"{show_name(name)} has {end - begin} bytes, but {needed}")
    return tensor, begin, end


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _check_no_gaps(file: Path, entries: list[tuple[int, int, str]], data: int) -> None:
    """Raise `CheckpointError` unless the tensors fill the bytes after the header, each byte once."""
    last = 0
    for begin, end, name in sorted(entries):
        if begin != last:
            rule = f"begins at byte {begin} of the data, but the tensor before it ends at {last}"
            raise _broken(file, f"{show_name(name)} {rule}")
        last = end
    if last != data:
        raise _broken(file, f"its tensors end at byte {last} of the data, and the file has {data}")


def _together(files: list[Path]) -> Headers:
    """Return the headers of all files, which no index lists; a tensor may be in one of them only."""
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in read_header(file).items():
            if name in tensors:
                raise CheckpointError(f"{file}: {show_name(name)} is also in {show_name(tensors[name].file.name)}")
            tensors[name] = tensor
    return Headers(files[0], tensors, {}, None)


# --- The index -------------------------------------------------------------------------------------------------


def _indexed(index: Path) -> Headers:
    weight_map, total_size = _read_index(index)
    tensors: dict[str, StoredTensor] = {}
    there = {shard: is_weights(index.parent / shard) for shard in sorted(set(weight_map.values()))}
    for shard, is_there in there.items():
        if Path(shard).name != shard or shard in ("", ".."):
            raise _not_a_file(index, next(name for name in weight_map if weight_map[name] == shard), shard)
        if is_there:
            tensors |= _shard(index.parent / shard, weight_map)
    for name, shard in weight_map.items():
        if there[shard] and name not in tensors:
            raise CheckpointError(
                f"{index}: {show_name(name)} is in {show_name(shard)}, but that file does not contain it"
            )
    absent = {name: shard for name, shard in weight_map.items() if not there[shard]}
    return Headers(index, tensors, absent, total_size)


def _shard(file: Path, weight_map: Mapping[str, str]) -> dict[str, StoredTensor]:
    """Return the entries of one shard; each must be there by the index."""
    tensors = read_header(file)
    for name in tensors:
        if name not in weight_map:
            raise CheckpointError(f"{file}: {show_name(name)} is not in {INDEX_FILE}")
        if weight_map[name] != file.name:
            raise CheckpointError(
                f"{file}: {show_name(name)} should be in {show_name(weight_map[name])} by {INDEX_FILE}"
            )
    return tensors


def _read_index(index: Path) -> tuple[dict[str, str], int | None]:
    """Return `weight_map`, the file of each tensor, and `metadata.total_size` of the index."""
    try:
        size = index.stat().st_size
        content = index.read_bytes() if size <= LONGEST_HEADER else b""
    except OSError as error:
        raise CheckpointError(f"{index}: cannot be read: {error.strerror}") from None
    if size > LONGEST_HEADER:
        raise CheckpointError(f"{index}: {size} bytes; an index has at most {LONGEST_HEADER}")
    if content.startswith(POINTER):
        raise CheckpointError(f"{index}: is a pointer of Git LFS, not the index: fetch it, or remove it")
    fields = _json(content, str(index))
    weight_map, metadata = (fields.get("weight_map"), fields.get("metadata")) if isinstance(fields, dict) else (0, 0)
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map must be an object of tensor names and files")
    total: Any = metadata.get("total_size") if isinstance(metadata, dict) else None
    if isinstance(total, float) and total.is_integer():
        total = int(total)
    return weight_map, total if type(total) is int else None


def _not_a_file(index: Path, tensor: str, shard: str) -> CheckpointError:
    return CheckpointError(
        f"{index}: {show_name(tensor)} is in {show_value(shard)}, which is not a file in this folder"
    )


def _is_pointer(file: Path) -> CheckpointError:
    return CheckpointError(f"{file}: is a pointer of Git LFS, not the weights: fetch them")


def _broken(file: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{file}: not a whole safetensors file: {reason}")


def _json(content: bytes, where: str) -> Any:
    """Return the JSON value in `content`; raise `CheckpointError`, beginning with `where`, if it is broken.

    An object with a key twice is refused.
    """

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            names = [name for name, _ in pairs]
            raise CheckpointError(f"{where}: has {show_name(next(n for n in names if names.count(n) > 1))} twice")
        return fields

    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=without_duplicates)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not valid JSON: {show_json_error(error)}") from None
