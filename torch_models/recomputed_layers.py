"""What is recomputed of each layer of a model, where it depends on the layer's place. Torch-free."""

from typing import get_args

import msgspec

from torch_models.errors import ArgumentError
from torch_models.spec import LayerSpec, ModelRecompute, ModelSpec, Recompute, runs_of

LEAST_INTERVAL = 2  # with 1 every layer would be recomputed, which is `full`


def check_recompute(recompute: object) -> None:
    """Raise `ArgumentError` if `recompute` is no `ModelRecompute`."""
    is_number = isinstance(recompute, int) and not isinstance(recompute, bool)
    if recompute not in get_args(Recompute) and not (is_number and recompute >= LEAST_INTERVAL):  # type: ignore[operator]
        ways = ", ".join(get_args(Recompute))
        rule = f"must be one of {ways}, or a whole number N, at least {LEAST_INTERVAL}, for every N-th layer"
        raise ArgumentError("recompute", recompute, rule)


def recompute_of_layer(recompute: ModelRecompute, index: int) -> Recompute:
    """What is recomputed of the layer `index`, from 0, where `recompute` is the model's.

    A number N stands for the N-th layer, the 2N-th and so on, as `selective_ac_option` did in torchtitan until 2026.
    """
    if isinstance(recompute, int):
        return "none" if (index + 1) % recompute else "full"
    return recompute


def with_recompute(spec: ModelSpec, recompute: ModelRecompute) -> ModelSpec:
    """Return `spec`; where `recompute` is a number, with layers that say what is recomputed of each.

    Layers that are equal, but of which something else is recomputed, are different layers then. Those of multi-token
    prediction are numbered on, as in checkpoints. A layer that says so already keeps it.
    """
    if not isinstance(recompute, int):
        return spec
    made: dict[tuple[LayerSpec, Recompute], LayerSpec] = {}

    def marked(layer: LayerSpec, index: int) -> LayerSpec:
        key = layer, layer.recompute or recompute_of_layer(recompute, index)
        return made.setdefault(key, msgspec.structs.replace(layer, recompute=key[1]))

    layers = [marked(layer, index) for index, layer in enumerate(spec.layers)]
    further = [marked(layer, index) for index, layer in enumerate(spec.mtp_layers, start=len(layers))]
    return msgspec.structs.replace(spec, layer_runs=runs_of(layers), mtp_layers=tuple(further))


def without_recompute(spec: ModelSpec) -> ModelSpec:
    """Return `spec` with layers that do not say what is recomputed of them."""
    runs = runs_of(unmarked(layer) for layer in spec.layers)
    return msgspec.structs.replace(spec, layer_runs=runs, mtp_layers=tuple(map(unmarked, spec.mtp_layers)))


def unmarked(layer: LayerSpec) -> LayerSpec:
    """Return `layer` without what it says of recomputation."""
    return layer if layer.recompute is None else msgspec.structs.replace(layer, recompute=None)
