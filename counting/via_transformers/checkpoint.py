"""Compares the headers of a checkpoint folder with the tensors of the model that transformers builds.

Published names may differ from those of transformers' modules, which it renames and merges while it loads, as experts
into one stacked tensor. Tensors under other names are compared by the sum of each layer.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from typing import Any, NamedTuple

from counting.counts import Totals
from counting.measurements.checkpoint import StoredTotals, read_comparable, stored_numbers
from counting.via_transformers.discover import Discovered
from torch_models.checkpoints.contents import Contents
from torch_models.checkpoints.places import TensorEntry, refuse_misfits
from torch_models.errors import show_name
from torch_models.fields.stored_names import is_irrelevant


class BuiltTensors(NamedTuple):
    """The tensors of a model as transformers built it, each once."""

    shapes: dict[str, tuple[int, ...]]  # parameters, and the buffers that a checkpoint has
    buffers: frozenset[str]  # names of all buffers, also of those that no checkpoint has
    tied: dict[str, str]  # another name of a parameter -> its name in `shapes`
    ignored: tuple[str, ...]  # regular expressions of names that transformers passes over
    layers: str  # name of the list of layers
    prefix: str  # of all names but the head's; a checkpoint of the model without its head lacks it


class Renamed(NamedTuple):
    """Tensors that are stored under other names than the model's."""

    tensors: int
    in_buffers: int  # numbers that belong to buffers of the model
    absent: int  # numbers that the model has, less those whose shapes are known


def tensors_of_built(found: Discovered) -> BuiltTensors:
    """The tensors of the model, as plain data."""
    model: Any = found.model
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    every = dict(model.named_parameters(remove_duplicate=False))
    tied = {name: names[id(tensor)] for name, tensor in every.items() if names[id(tensor)] != name}
    state = model.state_dict()
    return BuiltTensors(
        shapes={name: tuple(tensor.shape) for name, tensor in state.items() if name not in tied},
        buffers=frozenset(name for name, _ in model.named_buffers()),
        tied=tied,
        ignored=tuple(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()),
        layers=found.layers_name,
        prefix=f"{model.base_model_prefix}.",
    )


def compare_with_built(folder: str | None, built: BuiltTensors) -> StoredTotals | None:
    """The totals of the weights in `folder`; None if it has no weights.

    Raises `CheckpointError` if a file is broken, or if tensors do not fit the model; the message names some of them.
    """
    contents = read_comparable(folder) if folder is not None else None
    if not isinstance(contents, Contents):
        return contents
    found = contents.found
    own_names = _own_names(found, built)
    if own_names is None:
        other = next(
            (name for name in found if not (_is_own(name, built) or _is_own(built.prefix + name, built))), None
        )
        example = "there is no tensor" if other is None else f"{show_name(other)} is not like {built.layers}.0"
        return StoredTotals(
            None, f"Checkpoint: not compared, because its names are not those of transformers: {example}."
        )
    copies = {name for name, own in own_names.items() if own in built.tied and built.tied[own] in own_names.values()}
    own_names = {name: built.tied.get(own, own) for name, own in own_names.items()}
    compared = {name for name, own in own_names.items() if name not in copies and not _is_extra(own, built)}
    in_order = {name: own for name, own in own_names.items() if name in compared or name in copies}
    renamed = _compare(contents, in_order, copies, built)

    expected = {name: math.prod(built.shapes[own]) for name, own in own_names.items() if own in built.shapes}
    unknown = [name for name, tensor in found.items() if tensor.shape is None and name not in expected]
    if not compared.issuperset(unknown):
        reason = f"the size of {show_name(min(set(unknown) - compared))}, in an absent file, is not known"
        return StoredTotals(None, contents.note(reason))
    if unknown:  # together they are what the model has besides the others
        expected |= dict.fromkeys(unknown, 0) | {unknown[0]: renamed.absent}
    buffers = frozenset(name for name, own in own_names.items() if own in built.buffers)
    numbers = stored_numbers(contents, expected, buffers)
    if isinstance(numbers, str):
        return StoredTotals(None, contents.note(numbers))
    total = sum(numbers[name] for name in compared - buffers) - renamed.in_buffers
    note = contents.note(None)
    if renamed.tensors:
        sums = "the sum" if unknown else "each layer's sum"
        note += f" {renamed.tensors} of them have other names in transformers; of these, {sums} fits."
    return StoredTotals(Totals(parameters=total), note)


def _own_names(stored: Iterable[str], built: BuiltTensors) -> dict[str, str] | None:
    """Stored name -> name in the model, with the prefix that a checkpoint without head lacks; None if few are alike.

    One tensor of a layer is enough. Where there is none, at least half of the stored names must be the model's: the
    checkpoint then lacks its layers. Fewer, as the head alone, may be alike in other code too.
    """
    stored = list(stored)
    own_names = [
        {name: name if _is_own(name, built) else prefix + name for name in stored} for prefix in ("", built.prefix)
    ]
    for own in own_names:
        if any(name in built.shapes and name.startswith(f"{built.layers}.") for name in own.values()):
            return own
    own = max(own_names, key=lambda own: sum(_is_own(name, built) for name in own.values()))
    alike = sum(_is_own(name, built) for name in own.values())
    return own if stored and 2 * alike >= len(stored) else None


def _is_own(name: str, built: BuiltTensors) -> bool:
    return name in built.tied or name in built.shapes


def _is_extra(own: str, built: BuiltTensors) -> bool:
    """Whether a stored tensor is no tensor of the model, but one that transformers passes over, or no weight."""
    ignored = any(re.search(pattern, own) for pattern in built.ignored)
    return own not in built.shapes and (ignored or own in built.buffers or is_irrelevant(own))


def _compare(contents: Contents, own_names: Mapping[str, str], copies: Set[str], built: BuiltTensors) -> Renamed:
    """The tensors that are stored under other names; raises `CheckpointError` if tensors do not fit."""
    kinds: dict[str, list[str]] = {
        "misshapen": [],
        "missing": [],
        "surplus": [],
        "stored twice": [],
        "layers of another size": [],
    }
    homes: dict[str, str] = {}
    others: dict[str, dict[str, TensorEntry]] = defaultdict(dict)  # layer -> name -> one that the model lacks
    for name, own in own_names.items():
        tensor, shape = contents.found[name], built.shapes.get(own)
        if shape is None:
            others[_layer(own, built)][name] = tensor
        elif tensor.shape not in (None, shape):
            kinds["misshapen"].append(f"{name} in {tensor.file} has shape {tensor.shape}, must be {shape}")
        if name not in copies and homes.setdefault(own, name) != name:
            kinds["stored twice"].append(f"{name} in {tensor.file} is also {homes[own]}")
    lacking: dict[str, dict[str, int]] = defaultdict(dict)  # layer -> name in the model -> numbers; not stored
    for own in built.shapes.keys() - homes.keys():
        lacking[_layer(own, built)][own] = math.prod(built.shapes[own])

    in_buffers = absent = 0
    for layer in sorted({**lacking, **others}, key=lambda layer: (len(layer), layer)):
        wanted, left = dict(sorted(lacking[layer].items())), others[layer]
        if not left:
            kinds["missing"] += [f"{own} {built.shapes[own]}" for own in wanted if own not in built.buffers]
        elif not wanted:
            kinds["surplus"] += [f"{name} in {tensor.file}" for name, tensor in left.items()]
        else:
            in_buffers += sum(numbers for own, numbers in wanted.items() if own in built.buffers)
            shapes = [tensor.shape for tensor in left.values() if tensor.shape is not None]
            have, must = sum(map(math.prod, shapes)), sum(wanted.values())
            absent += must - have
            if have != must and len(shapes) == len(left):
                which = f"{next(iter(left))} and {len(left) - 1} more have {have} numbers"
                rule = f"{next(iter(wanted))} and {len(wanted) - 1} more must have {must}"
                kinds["layers of another size"].append(f"{which}, {rule}")
    refuse_misfits(contents.folder, kinds)
    return Renamed(sum(map(len, others.values())), in_buffers, absent)


def _layer(own: str, built: BuiltTensors) -> str:
    """The number of the layer that a tensor belongs to by its name; empty outside the layers."""
    prefix = f"{built.layers}."
    return own.removeprefix(prefix).partition(".")[0] if own.startswith(prefix) else ""
