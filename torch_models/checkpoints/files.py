"""Reads the safetensors files of a checkpoint folder: first their headers, then their tensors one at a time.

The weights are in one file, `model.safetensors`, or in the shards that `model.safetensors.index.json` lists. Nothing is
downloaded.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from torch_models.errors import CheckpointError, UserError, show_value

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# Bytes per number of the dtypes that can be read. Any other dtype belongs to a quantised checkpoint.
DTYPE_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}

# The pages of a file stay in memory while it is open, so a file is closed and opened again after this many bytes.
BYTES_PER_OPENING = 2**26


class StoredTensor(NamedTuple):
    """A tensor's entry in a file header; `dtype` is the name that safetensors uses, such as BF16."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Map the stored name of every tensor of the checkpoint to its header entry. Reads headers only.

    Raises `CheckpointError` if there are no weights, a file is broken, or index and shards differ; `UserError` if
    safetensors is not installed.
    """
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.is_file():  # before the index, as transformers does
        return _header(single)
    if index.is_file():
        return _indexed_tensors(index)
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    hint = f"; {pickled[0]} is a pickle, which is never read: convert it to safetensors" if pickled else ""
    raise CheckpointError(f"{folder}: contains neither {SINGLE_FILE} nor {INDEX_FILE}{hint}")


def stream(stored: Mapping[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the value of each tensor, on the CPU, file by file.

    A value is memory-mapped from the file. Use it before the next iteration and keep no reference to it.
    """
    for file, names in _openings(stored):
        with _opened(file) as opened:
            for name in names:
                yield name, opened.get_tensor(name)


def _openings(stored: Mapping[str, StoredTensor]) -> list[tuple[Path, list[str]]]:
    """Group tensors by file into openings of at most `BYTES_PER_OPENING` bytes; a larger tensor has its own."""
    openings: list[tuple[Path, list[str]]] = []
    used = 0
    for name, tensor in sorted(stored.items(), key=lambda item: item[1].file):
        size = math.prod(tensor.shape) * DTYPE_BYTES[tensor.dtype]
        if openings and openings[-1][0] == tensor.file and used + size <= BYTES_PER_OPENING:
            openings[-1][1].append(name)
            used += size
        else:
            openings.append((tensor.file, [name]))
            used = size
    return openings


def _indexed_tensors(index: Path) -> dict[str, StoredTensor]:
    weight_map = _weight_map(index)
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        file = index.parent / shard
        if Path(shard).name != shard or not file.is_file():
            tensor = next(name for name in weight_map if weight_map[name] == shard)
            raise CheckpointError(f"{index}: {tensor} is in {show_value(shard)}, which is not a file in this folder")
        for name, stored in _header(file).items():
            if name not in weight_map:
                raise CheckpointError(f"{file}: {name} is not in {INDEX_FILE}")
            if weight_map[name] != shard:
                raise CheckpointError(f"{file}: {name} should be in {weight_map[name]} by {INDEX_FILE}")
            tensors[name] = stored
    for name, shard in weight_map.items():
        if name not in tensors:
            raise CheckpointError(f"{index}: {name} is in {shard}, but that file does not contain it")
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """Return the `weight_map` of the index: tensor name -> file name of its shard."""
    try:
        content: Any = json.loads(index.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{index}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{index}: not valid JSON: {error}") from None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map must be an object of tensor names and files")
    return weight_map


def _header(file: Path) -> dict[str, StoredTensor]:
    with _opened(file) as opened:
        names: list[str] = opened.keys()
        slices = {name: opened.get_slice(name) for name in names}
        return {name: StoredTensor(file, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise UserError(
            f"{file}: reading it needs safetensors; install model-training-cost-analysis[checkpoints]"
        ) from None
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a whole safetensors file: {error}") from None
