"""Which layers of a built model run in a measured step, and how many layers of the model each of them stands for.

Of each kind the first layer and the second one run: the first is alone in what its passes keep and release. Tensors
that layers share, such as rotary tables, are alive until it runs backward; and the code of the model may hold its input
during the whole forward pass, but that of another layer only until the next one runs. So the second one stands for all
others.
"""

from itertools import groupby
from typing import NamedTuple

from torch import nn

from counting.via_transformers.discover import Discovered
from torch_models.recomputed_layers import recompute_of_layer
from torch_models.spec import ModelRecompute, Recompute


class LayerToRun(NamedTuple):
    """The first layer of a kind, or the second one, which stands for the others."""

    layer: nn.Module
    kind: str
    recompute: Recompute
    number: int  # of the layers in the model that it stands for


class LayersToRun(NamedTuple):
    """The layers that run, in the model's order."""

    layers: tuple[LayerToRun, ...]
    runs: tuple[tuple[int, int], ...]  # equal layers in a row, in the model's order: index in `layers`, and number
    first_alike: tuple[int, ...]  # for each layer of the model, the number of the one that runs instead


class _Alike(NamedTuple):
    """What layers have in common that are measured together."""

    like: int  # the number of the first layer that computes the same
    recompute: Recompute
    is_first: bool


def layers_to_run(found: Discovered, kinds: list[str], recompute: ModelRecompute) -> LayersToRun:
    """The layers of a step; `kinds` are the names of the model's groups, `recompute` is the setup's."""
    names = {group.first: kind for group, kind in zip(found.groups, kinds, strict=True)}
    of_each: list[_Alike] = []
    for index, like in enumerate(found.first_alike):
        first = _Alike(like, recompute_of_layer(recompute, index), is_first=True)
        of_each.append(first._replace(is_first=first not in of_each))
    runs_first = {alike: of_each.index(alike) for alike in of_each}
    places = {alike: place for place, alike in enumerate(runs_first)}
    layers = tuple(
        LayerToRun(found.layers[index], names[alike.like], alike.recompute, of_each.count(alike))
        for alike, index in runs_first.items()
    )
    runs = tuple((place, len(list(equal))) for place, equal in groupby(places[alike] for alike in of_each))
    return LayersToRun(layers, runs, tuple(runs_first[alike] for alike in of_each))
