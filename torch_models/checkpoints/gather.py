"""The values of a checkpoint's files from a model whose tensors may be divided over ranks, piece by piece."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_models.checkpoints.shards import Shard
from torch_models.fields.stored_names import Place

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

SLICE_BYTES = 2**28  # of a divided tensor that every rank has whole at a time, beside the values of one file


def allocate(shard: Shard, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of one file by stored name, contiguous on the CPU and without values yet."""
    return {part.name: torch.empty(part.shape, dtype=tensors[part.places[0].native].dtype) for part in shard.parts}


@torch.no_grad()
def fill(values: Mapping[str, Tensor], shards: Sequence[Shard], tensors: Mapping[str, Tensor]) -> None:
    """Copy the values of one file out of the model's tensors, which are given by native name.

    With divided tensors this is collective: `shards` are the files that the ranks fill at the same time, one of them
    this rank's, whose tensors are in `values`. A divided tensor is gathered in slices of at most `SLICE_BYTES` if its
    last dimension is not divided, and else whole.
    """
    parts: dict[str, list[tuple[Place, Tensor]]] = {}
    for shard in shards:
        for part in shard.parts:
            for place in part.places:
                wanted = parts.setdefault(place.native, [])
                if part.name in values:
                    wanted.append((place, place.within(values[part.name])))
    for native, wanted in parts.items():
        for columns, piece in _pieces(tensors[native]):
            for place, target in wanted:
                target[..., columns].copy_(place.of(piece))


def divided_type() -> type[Tensor] | None:
    """Return the class of divided tensors; None if nothing has imported it, so that there are none."""
    module = sys.modules.get("torch.distributed.tensor")
    return None if module is None else module.DTensor


def _pieces(tensor: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield ranges of the last dimension with the tensor's values there, those of all ranks."""
    divided = divided_type()
    if divided is None or not isinstance(tensor, divided):
        yield slice(None), tensor
        return
    yield from _gathered(tensor)  # type: ignore[arg-type]


def _gathered(tensor: "DTensor") -> Iterator[tuple[slice, Tensor]]:
    mesh, placements = tensor.device_mesh, tensor.placements
    local = tensor.to_local()
    last = tensor.ndim - 1
    size = tensor.shape[-1]
    width = size
    if last > 0 and all(getattr(placement, "dim", None) != last for placement in placements):
        width = max(1, SLICE_BYTES * size // tensor.nbytes)
    for begin in range(0, size, width):
        columns = slice(begin, min(begin + width, size))
        piece = local[..., columns].to(mesh.device_type).contiguous()
        shape = torch.Size((*tensor.shape[:-1], columns.stop - begin))
        stride = torch.empty(shape, device="meta").stride()
        whole = type(tensor).from_local(piece, mesh, placements, run_check=False, shape=shape, stride=stride)
        yield columns, whole.full_tensor()
