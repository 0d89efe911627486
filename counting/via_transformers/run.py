"""One forward pass of a discovered model, with one layer of each kind, that records the arguments of every part.

Each part can then be measured separately. The dispatched ops show which modules multiply matrices, so that no product
is left out.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

from counting.measurements.dispatch import Attribution, FlopCounter
from counting.measurements.live_bytes import LiveBytes
from counting.via_transformers.attention import ONE_KERNEL, attention_known_as, noting_modules
from counting.via_transformers.calls import Call, HandsOn
from counting.via_transformers.discover import Discovered, discover
from counting.via_transformers.refusals import one_line
from torch_models.errors import UserError

LONGEST_REASON = 160  # characters of an error from a family's code


class Way(NamedTuple):
    """How a model is built and run: the name of its attention in transformers, and whether it receives a mask."""

    attention: str
    masked: bool

    def __str__(self) -> str:
        attention = "attention as one fused kernel" if self.attention == ONE_KERNEL else f"{self.attention} attention"
        return f"{attention} with a mask" if self.masked else attention


# The first way that runs is used: one kernel if the family's code allows it, else its own fused or eager attention.
# Each is tried without a mask, then with one.
WAYS = tuple(Way(attention, masked) for attention in (ONE_KERNEL, "sdpa", "eager") for masked in (False, True))


class Recorded(NamedTuple):
    """The record of one forward pass; layers that are equal to an earlier one did not run."""

    layers: Mapping[int, Call]  # calls of the first layer of each group, by its number; only layers that were called
    outside: Mapping[str, Call]  # calls of the modules outside the layers that have no submodules, by name
    flops: Mapping[nn.Module | None, int]  # FLOPs of each module's own ops, without its submodules
    in_one_kernel: frozenset[nn.Module]  # modules whose attention ran as one fused kernel


def run_first_way(config: Any, sequence_length: int) -> tuple[Discovered, Recorded]:
    """The model of a config, built and run in the first of `WAYS` that works.

    Raises `UserError` if the model cannot be counted, or if no way works; then the message has the reason for each.
    """
    failed: dict[str, list[Way]] = {}  # reason -> the ways that gave it
    for way in WAYS:
        try:
            found = discover(config, way.attention)
            return found, run(found, way, sequence_length)
        except UserError:
            raise
        except Exception as error:  # the family's code may raise any exception
            failed.setdefault(one_line(error, LONGEST_REASON), []).append(way)
    reasons = "; ".join(f"{', '.join(map(str, ways))}: {reason}" for reason, ways in failed.items())
    raise UserError(f"its forward pass does not run on the meta device in any way ({reasons})")


def run(found: Discovered, way: Way, sequence_length: int) -> Recorded:
    """Run the model once, without gradients, over one sequence of `sequence_length` tokens.

    During the pass there are hooks on the model's parts, and layers that do not run are replaced by `HandsOn`. Caches
    that transformers' modules keep, such as rotary tables of that length, stay in the model.
    """
    calls: dict[str, Call] = {}
    outputs: dict[int, Any] = {}
    in_one_kernel: set[nn.Module] = set()
    layers = {f"{found.layers_name}.{group.first}": group for group in found.groups}
    outside = {
        name: module
        for name, module in found.model.named_modules()
        if not name.startswith(f"{found.layers_name}.") and next(module.children(), None) is None
    }
    parts = {name: group.layer for name, group in layers.items()} | outside
    with contextlib.ExitStack() as stack:
        for name, part in parts.items():
            stack.callback(part.register_forward_pre_hook(_note_call(name, calls), with_kwargs=True).remove)
        for group in found.groups:
            stack.callback(group.layer.register_forward_hook(_note_output(group.first, outputs)).remove)
        stack.enter_context(_only_first_layers(found, outputs))
        stack.enter_context(attention_known_as(ONE_KERNEL, noting_modules(in_one_kernel)))
        flops = _flops_of_modules(found.model, way, sequence_length)
    return Recorded(
        layers=MappingProxyType({group.first: calls[name] for name, group in layers.items() if name in calls}),
        outside=MappingProxyType({name: call for name, call in calls.items() if name in outside}),
        flops=MappingProxyType(flops),
        in_one_kernel=frozenset(in_one_kernel),
    )


def _note_call(name: str, calls: dict[str, Call]) -> Any:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name in calls and any(True for _ in module.parameters()):
            raise UserError(f"{name} is called twice in one forward pass")
        calls[name] = Call(module, args, kwargs)

    return note


def _note_output(index: int, outputs: dict[int, Any]) -> Any:
    def note(module: nn.Module, args: Any, out: Any) -> None:
        outputs[index] = out

    return note


@contextlib.contextmanager
def _only_first_layers(found: Discovered, outputs: dict[int, Any]) -> Iterator[None]:
    """Context in which layers that are equal to an earlier one are replaced by `HandsOn`."""
    stack: Any = found.model.get_submodule(found.layers_name)
    try:
        for index, like in enumerate(found.first_alike):
            if index != like:
                stack[index] = HandsOn(found.layers[index], like, outputs)
        yield
    finally:
        for index, layer in enumerate(found.layers):
            stack[index] = layer


def _flops_of_modules(model: nn.Module, way: Way, sequence_length: int) -> Counter[nn.Module | None]:
    """The FLOPs of one forward pass by the innermost module that ran each op; None for ops outside all modules.

    Raises `UserError` for an unknown op, as the counts of single parts do: otherwise a product outside all parts could
    be missed.
    """
    inputs: dict[str, Any] = {"input_ids": torch.zeros(1, sequence_length, dtype=torch.long, device="meta")}
    if way.masked:
        shape = (1, 1, sequence_length, sequence_length)
        inputs["attention_mask"] = torch.ones(shape, dtype=torch.bool, device="meta")
    with torch.no_grad(), Attribution() as attribution:
        counter = FlopCounter(attribution)

        def observe(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            if not (function.overloadpacket in _PRODUCTS and args[0].shape[-1] == 1):
                counter(function, args, kwargs, out)

        with LiveBytes([], observe):
            model(**inputs, use_cache=False)
    return Counter({module: flops for (_, module), flops in counter.flops.items()})


# A product with an inner size of 1 is elementwise work and not counted: rotary tables are computed so, outside the
# layers.
_PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.bmm)
