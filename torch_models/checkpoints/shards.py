"""Which tensors a checkpoint folder stores, under which names, and in which of its files. Torch-free."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch_models.checkpoints.weight_files import SINGLE_FILE
from torch_models.fields.config import family
from torch_models.fields.stored_names import Place, Shape, parts_of

SHARD_FILE = "model-{number:05}-of-{count:05}.safetensors"  # counted from 1


class Part(NamedTuple):
    """A tensor as it is stored: its name, its places in tensors of the model, its shape and its size."""

    name: str
    places: tuple[Place, ...]
    shape: Shape
    nbytes: int


class Shard(NamedTuple):
    """One file of a checkpoint, and what it stores."""

    file: str
    parts: tuple[Part, ...]


def parts_to_store(shapes: Mapping[str, Shape], widths: Mapping[str, int], model_type: str) -> list[Part]:
    """Return the parts that checkpoints of the family `model_type` store of tensors with these native names.

    `shapes` are those of the model's tensors, `widths` their bytes per number. The order is that of `shapes`; a tensor
    of several of them comes where the first of them is.
    """
    stored_names = family(model_type).Config.stored_names
    parts: dict[str, Part] = {}
    for native, whole in shapes.items():
        for place, name in parts_of(native, whole[0], stored_names).items():
            shape = place.shape_in(whole)
            before = parts[name].places if name in parts else ()
            parts[name] = Part(name, (*before, place), shape, math.prod(shape) * widths[native])
    return list(parts.values())


def shards_of(parts: Iterable[Part], max_shard_bytes: int) -> list[Shard]:
    """Divide the parts, in their order, into files of at most `max_shard_bytes`; a larger tensor has its own file."""
    files: list[list[Part]] = []
    used = 0
    for part in parts:
        if files and used + part.nbytes <= max_shard_bytes:
            files[-1].append(part)
            used += part.nbytes
        else:
            files.append([part])
            used = part.nbytes
    names = [SHARD_FILE.format(number=number, count=len(files)) for number in range(1, len(files) + 1)]
    return [Shard(*shard) for shard in zip(names if len(files) > 1 else [SINGLE_FILE], map(tuple, files), strict=True)]
