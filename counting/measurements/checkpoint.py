"""Parameters that the headers of a checkpoint folder contain: names and shapes are compared, then numbers are summed.

No weight is read. The sums are of the shapes in the files; where files are absent and only their index is there, they
follow from its number of bytes. The headers know no components, so there are only totals.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import nn

from counting.counts import Totals
from counting.measurements.probe import Probe, build_probe
from torch_models.checkpoints.contents import Contents, read_contents, why_not_summed
from torch_models.checkpoints.places import (
    DECODER,
    LAYERS,
    TensorEntry,
    lacks_prefix,
    parts_of_checkpoint,
    places_in,
    refuse_misfits,
)
from torch_models.checkpoints.weight_files import why_nothing_is_read
from torch_models.modules.moe import CORRECTION_BIAS
from torch_models.spec import ModelSpec


class StoredTotals(NamedTuple):
    """The totals of a checkpoint, or None if they cannot be compared; and in words what was compared, or why not."""

    totals: Totals | None
    note: str


class ModelTensors(NamedTuple):
    """The shapes of a model's tensors by their names in a checkpoint, with stacked experts."""

    main: dict[str, tuple[int, ...]]
    mtp: dict[str, tuple[int, ...]]
    buffers: frozenset[str]  # names of those that no optimiser updates


def read_comparable(folder: str) -> Contents | StoredTotals | None:
    """The contents of a checkpoint folder; totals of None if they cannot be compared; None if it has no weights."""
    contents = read_contents(Path(folder))
    why = why_nothing_is_read(Path(folder)) if contents is None else contents.not_compared
    return contents if why is None else StoredTotals(None, f"Checkpoint: not compared, because {why}.")


def stored_numbers(contents: Contents, expected: Mapping[str, int], buffers: frozenset[str]) -> dict[str, int] | str:
    """How many numbers each stored tensor has, or why that is not known.

    It is the product of the shape in the header; where the file is absent it is the number in `expected`, provided that
    the index's number of bytes confirms it. Raises `CheckpointError` if that contradicts it.
    """
    why = why_not_summed(contents, expected, buffers)
    if why is not None:
        return why
    return {
        name: expected[name] if tensor.shape is None else math.prod(tensor.shape)
        for name, tensor in contents.found.items()
    }


def count_checkpoint(spec: ModelSpec) -> StoredTotals | None:
    """The totals of the weights in the folder of `spec`; None if it has no weights.

    Raises `CheckpointError` if a file is broken, or if tensors do not fit the config; the message names some of them.
    """
    contents = read_comparable(spec.folder) if spec.folder is not None else None
    if not isinstance(contents, Contents):
        return contents
    if lacks_prefix(contents.found, spec):
        contents = contents.with_prefix(DECODER)  # saved without its head
    found, model = contents.found, tensors_of(build_probe(spec, "fused"))
    parts = parts_of_checkpoint(found, spec)
    main = {name: shape for name, shape in model.main.items() if name != parts.left_out}
    fit = (spec.model_type, contents.folder)
    places = places_in(main, {name: found[name] for name in parts.main}, *fit)
    has_mtp = bool(parts.mtp) or any(name.startswith(LAYERS) for name in parts.copies)
    if has_mtp:
        places |= places_in(model.mtp, {name: found[name] for name in parts.mtp}, *fit)
    vocabulary = (spec.vocab_size, spec.hidden_size)
    _check_copies(contents.folder, {name: found[name] for name in parts.copies}, vocabulary)

    shapes = model.main | model.mtp
    expected = {name: math.prod(own[0].shape_in(shapes[own[0].native])) for name, own in places.items()}
    expected |= dict.fromkeys(parts.copies, math.prod(vocabulary))
    rotated = next((run.layer.attention.rotary.dim for run in spec.layer_runs if run.layer.attention.rotary), 0)
    expected |= dict.fromkeys(parts.irrelevant, rotated // 2)
    buffers = frozenset(name for name, own in places.items() if own[0].native in model.buffers)
    numbers = stored_numbers(contents, expected, buffers | set(parts.irrelevant))
    if isinstance(numbers, str):
        return StoredTotals(None, contents.note(numbers))

    def parameters(names: list[str]) -> int:
        return sum(numbers[name] for name in names if name not in buffers)

    def correction_bias(names: list[str]) -> int:
        own = [name for name in names if name in buffers and places[name][0].native.endswith(CORRECTION_BIAS)]
        return sum(numbers[name] for name in own)

    note = contents.note(None)
    if spec.mtp_layers and not has_mtp:
        note += " It has no tensors of multi-token prediction."
    return StoredTotals(
        Totals(
            parameters=parameters(parts.main),
            router_correction_bias=correction_bias(parts.main),
            mtp_parameters=parameters(parts.mtp) if has_mtp else None,
            mtp_router_correction_bias=correction_bias(parts.mtp) if has_mtp else None,
        ),
        note,
    )


def tensors_of(probe: Probe) -> ModelTensors:
    """The tensors of the model that the probe stands for: those of one layer of each kind, under every layer's name."""
    spec, buffers = probe.spec, set()
    by_kind = {layer: _shapes(module) for (layer, _), module in zip(probe.groups, probe.layers, strict=True)}
    main = {name: shape for name, (shape, _) in _shapes(probe.model).items() if not name.startswith(LAYERS)}
    layers = [by_kind[run.layer] for run in spec.layer_runs for _ in range(run.count)]
    mtp: dict[str, tuple[int, ...]] = {}
    for number, tensors in enumerate([*layers, *map(_shapes, probe.mtp_layers)]):
        for name, (shape, is_buffer) in tensors.items():
            (main if number < spec.num_layers else mtp)[f"{LAYERS}{number}.{name}"] = shape
            if is_buffer:
                buffers.add(f"{LAYERS}{number}.{name}")
    return ModelTensors(main, mtp, frozenset(buffers))


def _shapes(module: nn.Module) -> dict[str, tuple[tuple[int, ...], bool]]:
    """The shape of each tensor of the module, and whether it is a buffer."""
    buffers = {name for name, _ in module.named_buffers()}
    return {name: (tuple(tensor.shape), name in buffers) for name, tensor in module.state_dict().items()}


def _check_copies(folder: Path, copies: Mapping[str, TensorEntry], vocabulary: tuple[int, ...]) -> None:
    """Raise `CheckpointError` unless each copy of embedding or head has the shape (V, D), as far as it is known."""
    misshapen = [
        f"{name} in {copy.file} has shape {copy.shape}, must be {vocabulary}"
        for name, copy in copies.items()
        if copy.shape not in (None, vocabulary)
    ]
    refuse_misfits(folder, {"misshapen": misshapen})
