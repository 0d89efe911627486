"""The shallow model that stands for a deep one on a rank: every layer of the deep one has an equal among its layers.

What a layer's pass allocates on a rank depends on its neighbours too: fully_shard gathers the parameters of the next
layer, and lets go of the buffers of the one before, while a layer runs. So two layers are equal if their specs are, and
those of the layers before and after them. Torch-free.
"""

from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import msgspec

from torch_models.spec import LayerSpec, ModelSpec, runs_of

Place = tuple[int, int, int]  # a layer between its neighbours, each as the number of its spec; -1: there is none


class Shallow(NamedTuple):
    """A model with few layers, and the layers of the deep model that each of them stands for."""

    spec: ModelSpec
    runs: tuple[tuple[int, int], ...]  # in the deep model's order: index of a layer in `spec`, number of layers

    def counts(self) -> tuple[int, ...]:
        """The number of layers of the deep model that each layer of `spec` stands for."""
        counts = [0] * self.spec.num_layers
        for index, count in self.runs:
            counts[index] += count
        return tuple(counts)


@lru_cache(maxsize=256)
def shallow(spec: ModelSpec) -> Shallow:
    """Return the shallow model of `spec`; it has the same modules outside the layers."""
    specs: dict[LayerSpec, int] = {}
    layers = [specs.setdefault(run.layer, len(specs)) for run in spec.layer_runs for _ in range(run.count)]
    places = list(zip((-1, *layers), layers, (*layers[1:], -1), strict=False))
    kept = _shortened(places)
    index_of = {place: index for index, place in reversed(list(enumerate(kept)))}
    runs = [(index_of[place], len(list(equal))) for place, equal in groupby(places)]
    known = list(specs)
    return Shallow(
        msgspec.structs.replace(spec, layer_runs=runs_of(known[number] for _, number, _ in kept)), tuple(runs)
    )


def _shortened(places: list[Place]) -> list[Place]:
    """`places` without each detour that comes back to a place, and passes only places that are there without it."""
    kept: list[Place] = []
    for place in places:
        kept.append(place)
        last = next((i for i in range(len(kept) - 2, -1, -1) if kept[i] == place), None)
        if last is not None and set(kept[last + 1 :]) <= set(kept[: last + 1]):
            del kept[last + 1 :]
    return kept
