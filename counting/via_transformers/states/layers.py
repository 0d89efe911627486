"""The scans of each distinct layer, and the layers whose state is carried by a function that is not known."""

from collections.abc import Sequence

import torch
from torch import nn

from counting.scans import NamedScan, Scan
from counting.via_transformers.discover import Discovered, LayerGroup
from counting.via_transformers.reading.config import FEED_FORWARD_KINDS, STATE_KINDS
from counting.via_transformers.reading.decoders import no_count_of
from counting.via_transformers.run import Recorded
from counting.via_transformers.states.stand_ins import WINDOW, NotedScan
from counting.via_transformers.structure import carries_state
from torch_models.errors import UserError

# Classes of transformers whose code multiplies the matrices of the published algorithm itself, block by block.
MULTIPLIES_BLOCKS = {"MiniMaxLightningAttention": "lightning attention in blocks of {0.block_size}"}


def scans_of_groups(found: Discovered, recorded: Recorded, noted: list[NotedScan]) -> list[tuple[NotedScan, ...]]:
    """The scans of each group's first layer, which is run once more; `noted` gets all of them."""
    scans = []
    for group in found.groups:
        before = len(noted)
        if call := recorded.layers.get(group.first):
            with torch.no_grad():
                call(*call.tensors)
        scans.append(tuple(noted[before:]))
    return scans


def shapes_of(found: Discovered, scans: Sequence[Sequence[NotedScan]]) -> tuple[tuple[Scan, ...], ...]:
    """The plain data of the scans of each group, with those whose code multiplies blocks."""
    return tuple(
        (*(noted.scan for noted in of_layer), *map(_named, multiplying_blocks(group.layer)))
        for group, of_layer in zip(found.groups, scans, strict=True)
    )


def multiplying_blocks(layer: nn.Module) -> list[nn.Module]:
    """The modules of a layer whose code multiplies the matrices of a scan itself."""
    return [module for module in layer.modules() if type(module).__name__ in MULTIPLIES_BLOCKS]


def _named(module: nn.Module) -> Scan:
    return NamedScan(algorithm=MULTIPLIES_BLOCKS[type(module).__name__].format(module))


def parts_with(layer: nn.Module, scans: Sequence[NotedScan]) -> set[str]:
    """The names of the modules of a layer that run a scan, and of those that contain them."""
    modules = {noted.module for noted in scans}
    names = [name for name, module in layer.named_modules() if module in modules]
    return {name for each in names for name in _prefixes(each)}


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: number + 1]) for number in range(len(parts))]


def refuse_unknown_states(found: Discovered, cores: Sequence[bool], scans: Sequence[Sequence[NotedScan]]) -> None:
    """Raise `UserError` for a layer whose tokens do not meet in a product or a known scan: it may carry a state.

    A short convolution carries no state beyond its window, so that beside it there may be one, which has a decay.
    `cores` says of each group whether it has a product of two activations.
    """
    stateful = getattr(found.model, "_is_stateful", False) and not any(scans) and not _kinds_are_known(found)
    for group, has_core, of_layer in zip(found.groups, cores, scans, strict=True):
        is_known = any(noted.scan.algorithm != WINDOW for noted in of_layer)
        in_windows = bool(of_layer) and not any(map(carries_state, group.layer.modules()))
        if (
            is_known
            or (in_windows and (has_core or group.kind == "conv"))
            or multiplying_blocks(group.layer)
            or group.kind in FEED_FORWARD_KINDS
        ):
            continue
        if group.kind in STATE_KINDS or stateful or not has_core:
            raise UserError(no_count_of(f"its layers ({type(group.layer).__name__})"))


def is_causal_square(group: LayerGroup) -> bool:
    """Whether a layer's products of two activations are of a causal square, and not of blocks and a state."""
    return group.kind not in STATE_KINDS or group.kind in ("hybrid", "hybrid_sliding")


def _kinds_are_known(found: Discovered) -> bool:
    """Whether the config says of each layer what kind of attention it has."""
    return all(group.kind is not None for group in found.groups) if found.groups else False
