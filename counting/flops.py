"""Measured forward FLOPs: fvcore's trace, and again torch's dispatch counter, of the same forward on the meta device.

fvcore counts multiply-adds and has no handle, or a wrong one, for several products; here each op that multiplies
matrices has a handle of ours that counts 2 FLOPs per multiply-add, and an op that is neither one of these nor known
to multiply none is an error.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from fvcore.nn.jit_analysis import JitModelAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from counting.components import counts_of_modules
from counting.counts import Counts

Shape = list[int]

ATTENTION_CORE = "attention_core"  # products of two activations: scores and weighted values
PROJECTION = "projection"  # products of activations with weights

Handle = Callable[[Any, Any], Counter[str]]
HANDLES: dict[str, Handle] = {}

# Ops that fvcore does not know and that multiply no matrices: elementwise arithmetic, choices and data movement.
ZERO_FLOP_OPS = (
    "aten::add",
    "aten::add_",
    "aten::cos",
    "aten::div",
    "aten::embedding",
    "aten::empty_like",
    "aten::expand_as",
    "aten::gelu",
    "aten::index_select",
    "aten::mean",
    "aten::mul",
    "aten::ones_like",
    "aten::pow",
    "aten::reciprocal",
    "aten::repeat_interleave",
    "aten::rms_norm",
    "aten::rsqrt",
    "aten::scatter",
    "aten::scatter_add_",
    "aten::searchsorted",
    "aten::sigmoid",
    "aten::silu",
    "aten::sin",
    "aten::softmax",
    "aten::sort",
    "aten::square",
    "aten::sub",
    "aten::sum",
    "aten::topk",
    "aten::triu",
    "aten::unflatten",
    "aten::view_as",
)


def register(
    op: str, kind: str, handles: dict[str, Handle] = HANDLES
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Let a function of the input shapes count the FLOPs of `op`; a second formula for one op is refused."""

    def decorate(formula: Callable[..., int]) -> Callable[..., int]:
        assert op not in handles, f"{op} has a formula already"

        def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
            del outputs
            shapes = [value.type().sizes() for value in inputs if value.isCompleteTensor()]
            return Counter({kind: formula(*shapes)})

        handles[op] = handle
        return formula

    return decorate


@register("aten::linear", PROJECTION)
def linear_flops(x: Shape, weight: Shape, bias: Shape | None = None) -> int:
    """(…, in) with (out, in): 2 in out per row; adding the bias multiplies nothing."""
    del bias
    return 2 * prod(x) * weight[0]


@register("aten::matmul", ATTENTION_CORE)
def matmul_flops(left: Shape, right: Shape) -> int:
    """(…, n, k) with (…, k, m), the leading sizes equal."""
    assert left[:-2] == right[:-2] and left[-1] == right[-2], f"no formula for matmul of {left} and {right}"
    return 2 * prod(left) * right[-1]


@register("aten::scaled_dot_product_attention", ATTENTION_CORE)
def attention_flops(query: Shape, key: Shape, value: Shape) -> int:
    """(B, H, S, C), (B, G, S, C), (B, G, S, C'): scores and weighted values over the full square."""
    batch, heads, length, channels = query
    assert key[0] == value[0] == batch and key[2] == value[2] and heads % key[1] == 0
    return 2 * batch * heads * length * key[2] * (channels + value[3])


@register("aten::_grouped_mm", PROJECTION)
def grouped_mm_flops(rows: Shape, weights: Shape, ends: Shape) -> int:
    """(T, in) rows, each with one of E matrices (E, in, out): 2 in out per row, however the rows are grouped."""
    assert len(rows) == 2 and len(weights) == 3 and ends == [weights[0]] and rows[1] == weights[1]
    return 2 * prod(rows) * weights[2]


def traced_flops(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Counts, int]:
    """FLOPs of one forward by component, and the attention core's share of them, by fvcore's trace.

    Raises `AssertionError` naming the ops that have no formula.
    """
    by_module = trace(module, inputs, HANDLES, ZERO_FLOP_OPS)
    counts = counts_of_modules(module, {name: sum(counts.values()) for name, counts in by_module.items()})
    return counts, by_module[""][ATTENTION_CORE]


def trace(
    module: nn.Module, inputs: tuple[Any, ...], handles: Mapping[str, Handle], zero_flop_ops: Iterable[str]
) -> dict[str, Counter[str]]:
    """FLOPs by kind of one forward, for each submodule (what is within it included), by fvcore's trace.

    Raises `AssertionError` naming the ops that are neither in `handles` nor in `zero_flop_ops`.
    """
    analysis = JitModelAnalysis(module, inputs)
    analysis.set_op_handle(**handles, **dict.fromkeys(zero_flop_ops))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with torch.no_grad():
        by_module: dict[str, Counter[str]] = analysis.by_module_and_operator()
    unknown = sorted(analysis.unsupported_ops())
    assert not unknown, f"ops without a FLOP formula: {', '.join(unknown)}"
    return by_module


def dispatched_flops(module: nn.Module, inputs: tuple[Any, ...]) -> Counts:
    """FLOPs of one forward by component, by `torch.utils.flop_counter`, which sees ops one level below the trace.

    Its formulas are torch's own, but for grouped products, which it does not know.
    """
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._grouped_mm: dispatched_grouped_mm})
    with torch.no_grad(), counter:
        module(*inputs)
    root = type(module).__name__
    totals = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    entire = totals.pop("Global", 0)
    assert totals.get(root, 0) == entire, f"{entire} FLOPs in all, {totals.get(root, 0)} of them in modules"
    return counts_of_modules(module, {name.removeprefix(root).removeprefix("."): n for name, n in totals.items()})


def dispatched_grouped_mm(rows: Shape, weights: Shape, *_: object, out_shape: Shape, **__: object) -> int:
    """As `grouped_mm_flops`, in the dispatch counter's terms."""
    del weights
    return 2 * prod(out_shape) * rows[-1]
