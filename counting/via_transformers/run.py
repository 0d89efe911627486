"""One forward pass of a discovered model, with one layer of each kind, that records the arguments of every part.

Each recorded call can then be run again and measured separately. The dispatched ops show which modules multiply
matrices, so that no product is left out.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from counting.measurements.dispatch import Attribution, FlopCounter
from counting.measurements.live_bytes import LiveBytes
from counting.setup import MicroBatch
from counting.via_transformers.attention import ONE_KERNEL, attention_known_as, noting_modules
from counting.via_transformers.discover import Discovered, discover
from counting.via_transformers.reading.decoders import Decoder, one_line
from counting.via_transformers.reading.positions import LookUps, position_field, refuse_longer_than_tables, too_long
from counting.via_transformers.states.stand_ins import scans_stood_in
from counting.via_transformers.structure import is_part
from torch_models.errors import UserError

LONGEST_REASON = 160  # characters of an error from a family's code
# In errors of code that needs numbers where there are only shapes.
NUMBERS_ARE_READ = ("meta tensor", "no data", "data-independent")


class Call(nn.Module):
    """A part of the model and its recorded call: tensors in, tensors out; other arguments stay as recorded."""

    component = "other"  # for FLOPs that no module inside the part owns

    def __init__(self, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.part = part
        self._leaves, self._tree = tree_flatten((args, kwargs))
        self._places = [place for place, leaf in enumerate(self._leaves) if isinstance(leaf, Tensor)]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensor arguments of the recorded call; for a layer the first is the residual stream."""
        return tuple(self._leaves[place] for place in self._places)

    def forward(self, *tensors: Tensor) -> Any:
        """Run the part with `tensors` instead of the recorded ones. Returns one tensor, or a tuple of tensors."""
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(leaves, self._tree)
        out = [leaf for leaf in tree_leaves(self.part(*args, **kwargs)) if isinstance(leaf, Tensor)]
        return out[0] if len(out) == 1 else tuple(out)


class LayerCall(nn.Module):
    """A layer's call with the signature of `counting.measurements.live_bytes`: its input, and the shared inputs."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def forward(self, x_BSD: Tensor, shared: tuple[Tensor, ...]) -> Tensor:
        """(B, S, D) gives (B, S, D)."""
        out = self.call(x_BSD, *shared)
        stream: Tensor = out if isinstance(out, Tensor) else out[0]
        return stream


class HandsOn(nn.Module):
    """Replaces a layer that is equal to an earlier one: returns its input, in the form of the earlier layer's output.

    `output_of` has the output of each layer that ran, by its number; `like` is the number of the earlier layer.
    """

    def __init__(self, layer: nn.Module, like: int, output_of: Callable[[int], Any]) -> None:
        super().__init__()
        self.__dict__["_stood_here"] = layer  # not a submodule, so that it is not counted
        self.__dict__["_output_of_like"] = lambda: output_of(like)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_stood_here"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The unchanged residual stream, in the form of the earlier layer's output."""
        stream = args[0] if args else kwargs["hidden_states"]
        out = self.__dict__["_output_of_like"]()
        return type(out)([stream, *out[1:]]) if type(out) in (tuple, list) else stream


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
    outside: Mapping[str, Call]  # calls of the modules outside the layers with no parts of their own, by name
    flops: Mapping[nn.Module | None, int]  # FLOPs of each module's own ops, without its submodules
    in_one_kernel: frozenset[nn.Module]  # modules whose attention ran as one fused kernel
    way: Way  # in which it ran


def run_first_way(decoder: Decoder, batch: MicroBatch) -> tuple[Discovered, Recorded]:
    """The model of a decoder, built and run in the first of `WAYS` that works.

    Raises `UserError` if the model cannot be counted, or if no way works; then the message has the reason.
    """
    not_built: list[str] = []
    failed: list[str] = []
    for attention, ways in groupby(WAYS, key=lambda way: way.attention):  # a model is built once for each attention
        try:
            found = discover(decoder, attention)
        except UserError:
            raise
        except Exception as error:  # the family's code may raise any exception
            not_built.append(one_line(error, LONGEST_REASON))
            continue
        refuse_longer_than_tables(found.model, found.layers, decoder.config, batch.length)
        for way in ways:
            try:
                return found, run(found, way, batch)
            except UserError:
                raise
            except Exception as error:
                failed.append(one_line(error, LONGEST_REASON))
    field, positions = position_field(decoder.config)
    if failed and positions is not None and positions < batch.length:
        raise too_long(field, positions, batch.length, f"transformers' code fails on it: {failed[0]}")
    raise UserError(_reason(not_built, failed, batch.length))


def _reason(not_built: Sequence[str], failed: Sequence[str], sequence_length: int) -> str:
    """Why no way works: the cause if it is known, else what transformers' code says where it gets furthest."""
    if not failed:
        return f"transformers cannot build it: {not_built[0]}"
    furthest = failed[0]  # the later ways need numbers for their masks
    if any(words in furthest for words in NUMBERS_ARE_READ):
        return "its code reads the numbers in a tensor, and the meta device, on which it is measured, has none"
    return f"transformers' code fails on a sequence of {sequence_length:,} tokens: {furthest}"


def run(found: Discovered, way: Way, batch: MicroBatch) -> Recorded:
    """Run the model once, without gradients, over one micro-batch.

    During the pass there are hooks on the model's parts, and layers that do not run are replaced by `HandsOn`. Caches
    that transformers' modules keep, such as rotary tables of its length, stay in the model.
    """
    calls: dict[str, Call] = {}
    outputs: dict[int, Any] = {}
    in_one_kernel: set[nn.Module] = set()
    used: set[nn.Module | nn.Parameter] = set()
    layers = {f"{found.layers_name}.{group.first}": group for group in found.groups}
    outside = {
        name: module
        for name, module in found.model.named_modules()
        if not name.startswith(f"{found.layers_name}.") and is_part(module)
    }
    parts = {name: group.layer for name, group in layers.items()} | outside
    with contextlib.ExitStack() as stack:
        for name, part in parts.items():
            stack.callback(part.register_forward_pre_hook(_note_call(name, calls), with_kwargs=True).remove)
        for group in found.groups:
            stack.callback(group.layer.register_forward_hook(_note_output(group.first, outputs)).remove)
        stack.enter_context(only_first_layers(found, found.first_alike, outputs.__getitem__))
        for index, like in enumerate(found.first_alike):
            if index != like:
                layer = found.model.get_submodule(f"{found.layers_name}.{index}")
                same = _refuse_other_inputs(f"{found.layers_name}.{like}", index, calls)
                stack.callback(layer.register_forward_pre_hook(same, with_kwargs=True).remove)
        stack.enter_context(attention_known_as(ONE_KERNEL, noting_modules(in_one_kernel)))
        noted = stack.enter_context(scans_stood_in(found.model))
        for module in _modules_that_run(found):
            stack.callback(module.register_forward_pre_hook(lambda module, _: used.add(module)).remove)
        flops = _flops_of_modules(found.model, way, batch, used)
    used.update(leaf for scan in noted for leaf in scan.arguments.values() if isinstance(leaf, nn.Parameter))
    _refuse_unused(found, used)
    return Recorded(
        layers=MappingProxyType({group.first: calls[name] for name, group in layers.items() if name in calls}),
        outside=MappingProxyType({name: call for name, call in calls.items() if name in outside}),
        flops=MappingProxyType(flops),
        in_one_kernel=frozenset(in_one_kernel),
        way=way,
    )


def _modules_that_run(found: Discovered) -> Iterator[nn.Module]:
    """The model's modules with parameters, without those in layers that are equal to an earlier one.

    Layers may share parameters, of which each uses some, such as an adapter of its own.
    """
    left_out = {
        parameter
        for index, like in enumerate(found.first_alike)
        if index != like
        for parameter in found.layers[index].parameters()
    }
    for module in found.model.modules():
        if not left_out.issuperset(module.parameters(recurse=False)):
            yield module


def _refuse_unused(found: Discovered, used: Collection[nn.Module | nn.Parameter]) -> None:
    """Raise `UserError` if there are parameters that the pass did not use: the count would not be of the whole model.

    A parameter is used if its module is called or if an op takes it.
    """
    names = {module: name for name, module in found.model.named_modules()}
    for module in _modules_that_run(found):
        if module not in used and not all(parameter in used for parameter in module.parameters(recurse=False)):
            name = f"{names[module]} ({type(module).__name__})"
            crosses = any(words in name.lower() for words in ("cross", "encoder_attn"))
            what = "attends to another model's states" if crosses else "takes other inputs, or is of another model"
            raise UserError(f"a pass over tokens leaves out {name}, which {what}")


def _note_call(name: str, calls: dict[str, Call]) -> Any:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name in calls and any(True for _ in module.parameters()):
            raise UserError(f"{name} is called twice in one forward pass")
        calls[name] = Call(module, args, kwargs)

    return note


def _refuse_other_inputs(like: str, index: int, calls: dict[str, Call]) -> Any:
    def compare(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sizes = [leaf.shape for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        of_like = [tensor.shape for tensor in calls[like].tensors] if like in calls else sizes
        # A further input, as chosen keys, may be the first layer's output.
        if len(sizes) == len(of_like) and sizes != of_like:
            name = type(calls[like].part).__name__
            raise UserError(
                f"layer {index} ({name}) takes inputs of other sizes than {like}, so that its cost is another"
            )

    return compare


def _note_output(index: int, outputs: dict[int, Any]) -> Any:
    def note(module: nn.Module, args: Any, out: Any) -> None:
        outputs[index] = out

    return note


@contextlib.contextmanager
def only_first_layers(found: Discovered, first_alike: Sequence[int], output_of: Callable[[int], Any]) -> Iterator[None]:
    """Context in which layers that are equal to an earlier one are replaced by `HandsOn`.

    `first_alike` is for each layer the index of the first one that is equal; `output_of` says what that one returned.
    """
    stack: Any = found.model.get_submodule(found.layers_name)
    try:
        for index, like in enumerate(first_alike):
            if index != like:
                stack[index] = HandsOn(found.layers[index], like, output_of)
        yield
    finally:
        for index, layer in enumerate(found.layers):
            stack[index] = layer


def inputs_of(way: Way, batch: MicroBatch) -> dict[str, torch.Tensor]:
    """Token ids of a micro-batch, and the mask if the model receives one."""
    inputs = {"input_ids": torch.zeros(*batch, dtype=torch.long, device="meta")}
    if way.masked:
        shape = (batch.sequences, 1, batch.length, batch.length)
        inputs["attention_mask"] = torch.ones(shape, dtype=torch.bool, device="meta")
    return inputs


def _flops_of_modules(
    model: nn.Module, way: Way, batch: MicroBatch, used: set[nn.Module | nn.Parameter]
) -> Counter[nn.Module | None]:
    """The FLOPs of one forward pass by the innermost module that ran each op; None for ops outside all modules.

    Adds to `used` the parameters that ops take.

    Raises `UserError` for an unknown op, as the counts of single parts do: otherwise a product outside all parts could
    be missed.
    """
    inputs = inputs_of(way, batch)
    with torch.no_grad(), Attribution() as attribution:
        counter, look_ups = FlopCounter(attribution), LookUps(model.config, batch.length)

        def observe(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            used.update(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, nn.Parameter))
            look_ups.observe(function, args, kwargs, out)
            if not (function.overloadpacket in _PRODUCTS and args[0].shape[-1] == 1):
                counter(function, args, kwargs, out)

        with LiveBytes([], observe):
            model(**inputs, use_cache=False)
    return Counter({module: flops for (_, module), flops in counter.flops.items()})


# A product with an inner size of 1 is elementwise work and not counted: rotary tables are computed so, outside the
# layers.
_PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.bmm)
