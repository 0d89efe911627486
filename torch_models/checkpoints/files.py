"""Reads the tensors of a checkpoint folder's safetensors files, one at a time; their headers are read in headers.py."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from torch_models.checkpoints.headers import StoredTensor
from torch_models.errors import CheckpointError, UserError

# The pages of a file stay in memory while it is open, so a file is closed and opened again after this many bytes.
BYTES_PER_OPENING = 2**26


def stream(stored: Mapping[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the value of each tensor, on the CPU, file by file.

    A value is memory-mapped from the file. Use it before the next iteration and keep no reference to it. Raises
    `CheckpointError` if a file is broken; `UserError` if safetensors is not installed.
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
        if openings and openings[-1][0] == tensor.file and used + tensor.nbytes <= BYTES_PER_OPENING:
            openings[-1][1].append(name)
            used += tensor.nbytes
        else:
            openings.append((tensor.file, [name]))
            used = tensor.nbytes
    return openings


def require_safetensors(file: Path, doing: str = "reading") -> None:
    """Raise `UserError` if safetensors is not installed, which reads and writes the tensors of `file`."""
    try:
        import safetensors  # noqa: F401 - only whether it is there
    except ImportError:
        raise UserError(
            f"{file}: {doing} it needs safetensors; install model-training-cost-analysis[checkpoints]"
        ) from None


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    require_safetensors(file)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a whole safetensors file: {error}") from None
