"""The safetensors files of a checkpoint folder: what they hold, and their tensors one at a time.

One file, `model.safetensors`, or shards that `model.safetensors.index.json` lists. Nothing is downloaded.
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

# The numbers that weights are stored as, in bytes. Any other dtype is a quantised checkpoint's.
DTYPE_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}

# A file's pages stay in memory while it is open: it is opened anew after so many bytes, for any size of file.
BYTES_PER_OPENING = 2**26


class StoredTensor(NamedTuple):
    """What a file's header says of a tensor: the dtype by safetensors' name for it, such as BF16."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint by the name it is stored under. Reads headers only.

    Raises `CheckpointError` where there are no weights, a file is broken, or index and shards differ.
    """
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.is_file():  # before the index, as transformers does
        return _header(single)
    if index.is_file():
        return _indexed_tensors(index)
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    hint = f"; {pickled[0]} is a pickle, which is never read: convert it to safetensors" if pickled else ""
    raise CheckpointError(f"{folder}: holds neither {SINGLE_FILE} nor {INDEX_FILE}{hint}")


def stream(stored: Mapping[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]:
    """Name and value of each tensor, on the CPU, file by file.

    A value is the file's own pages, mapped; use it before asking for the next, and keep none.
    """
    for file, names in _openings(stored):
        with _opened(file) as opened:
            for name in names:
                yield name, opened.get_tensor(name)


def _openings(stored: Mapping[str, StoredTensor]) -> list[tuple[Path, list[str]]]:
    """The tensors to read in each opening of a file: at most `BYTES_PER_OPENING`, or one."""
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
            raise CheckpointError(f"{index}: {tensor} is in {show_value(shard)}, which is no file of this folder")
        for name, stored in _header(file).items():
            if name not in weight_map:
                raise CheckpointError(f"{file}: {name} is not in {INDEX_FILE}")
            if weight_map[name] != shard:
                raise CheckpointError(f"{file}: {name} should be in {weight_map[name]} by {INDEX_FILE}")
            tensors[name] = stored
    for name, shard in weight_map.items():
        if name not in tensors:
            raise CheckpointError(f"{index}: {name} is in {shard}, but that file does not hold it")
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> shard, as the index says."""
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
