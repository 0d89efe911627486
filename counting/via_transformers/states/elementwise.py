"""Elementwise operations of a scan: what transformers' reference code does besides matrix products, by dispatch.

One operation is one element of the result of an elementwise op, or one element that is summed. Copies, masks of
constants and other movement of data count 0.
"""

from collections.abc import Callable, Collection
from fractions import Fraction
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from counting.measurements.dispatch import ForwardHooks
from counting.measurements.ops.formulas import op_flops
from counting.scans import DeltaRuleScan, StateSpaceScan
from counting.via_transformers.states.stand_ins import NotedScan

_aten = torch.ops.aten
_COPIES = {_aten.clone}
_SUMS = {_aten.cumsum}  # as many operations as elements, beside those that torch tags as reductions
_PRODUCTS = {_aten.mm, _aten.bmm, _aten.addmm, _aten.baddbmm}


def elementwise_operations(noted: NotedScan) -> int:
    """The elementwise operations of one scan over all its sequences.

    They are a polynomial of degree 2 in the number of blocks of the sequence: linear in tokens or chunks, and the
    passing of states from chunk to chunk may be quadratic. So three short sequences give those of any length, exactly.
    """
    scan = noted.scan
    chunked = isinstance(scan, StateSpaceScan | DeltaRuleScan)
    tokens = scan.chunk if isinstance(scan, StateSpaceScan | DeltaRuleScan) else noted.replaced.tokens
    assert tokens is not None
    first, second, third = (_operations_of(noted, blocks * tokens) for blocks in (1, 2, 3))
    blocks = Fraction(-(-noted.length // tokens)) if chunked else Fraction(noted.length, tokens)
    slope, bend = second - first, third - 2 * second + first
    total = first + (blocks - 1) * slope + (blocks - 1) * (blocks - 2) / 2 * bend
    assert total.denominator == 1, f"{scan}: its work is no polynomial in blocks of {tokens} tokens"
    return int(total)


def own_operations(call: nn.Module, tensors: tuple[Tensor, ...], modules: Collection[nn.Module]) -> int:
    """The elementwise operations of `modules` themselves in `call(*tensors)`, without those of their submodules."""
    running: list[nn.Module] = []
    counter = _Operations(products=False, counts=lambda: bool(running) and running[-1] in modules)
    hooks = ForwardHooks(running.append, lambda _: running.__delitem__(-1))
    if modules:
        with torch.no_grad(), hooks, counter:
            call(*tensors)
    return counter.operations


def _operations_of(noted: NotedScan, length: int) -> int:
    counter = _Operations(noted.replaced.counts_products)
    with torch.no_grad(), counter:
        noted.run(length)
    return counter.operations


class _Operations(TorchDispatchMode):
    """Sums the elementwise operations of the ops that run while `counts()`; with `products`, their FLOPs too."""

    def __init__(self, products: bool, counts: Callable[[], bool] = lambda: True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0
        self._products, self._counts = products, counts

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if not self._counts():
            return out
        packet = function.overloadpacket
        if packet == _aten.convolution:  # one multiplication and one addition for each element of a window
            self.operations += 2 * out.numel() * prod(args[1].shape[1:]) if self._products else 0
        elif packet in _PRODUCTS:
            self.operations += op_flops(function, args, kwargs, out) if self._products else 0
        elif packet in _SUMS or torch.Tag.reduction in function.tags:
            self.operations += args[0].numel()
        elif packet not in _COPIES and _is_pointwise(packet) and isinstance(out, Tensor):
            self.operations += out.numel()
        return out


def _is_pointwise(packet: Any) -> bool:
    """Whether torch tags an op as elementwise, in any of its forms: some in-place ones have no tag."""
    overloads: list[Callable[..., Any]] = [getattr(packet, name) for name in packet.overloads()]
    return any(torch.Tag.pointwise in each.tags for each in overloads)  # type: ignore[attr-defined]
