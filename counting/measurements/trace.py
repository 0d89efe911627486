"""Measured forward FLOPs: fvcore's trace, and again torch's dispatch counter, of the same forward on the meta device.

fvcore counts multiply-adds and has no handle, or a wrong one, for several products; here each op that multiplies
matrices has a handle of ours that counts 2 FLOPs per multiply-add, and an op that is neither one of these nor known
to multiply none is an error.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import torch

with warnings.catch_warnings():  # importing fvcore scripts its focal losses, which nothing here uses
    warnings.simplefilter("ignore", DeprecationWarning)
    from fvcore.nn.jit_analysis import JitModelAnalysis

from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count

from counting.counts import AttentionCore, Counts
from counting.measurements.components import counts_of_modules
from torch_models.modules.kernels.flash_attention import NAME as FLASH_ATTENTION

Shape = list[int]

PROJECTION = "projection"  # products of activations with weights
CORE = "attention core"  # products of two activations, as run
CAUSAL_CORE = "attention core, causal"  # the same, counted in two other ways and in no sum
SQUARE_CORE = "attention core, full square"
COUNTED = (PROJECTION, CORE)
WINDOW_ARGUMENT = 5  # of our fused op

Handle = Callable[[Any, Any], Counter[str]]
HANDLES: dict[str, Handle] = {}

# Ops that fvcore does not know and that multiply no matrices: elementwise arithmetic, choices and data movement.
ZERO_FLOP_OPS = (
    "aten::__or__",
    "aten::add",
    "aten::add_",
    "aten::bitwise_or",
    "aten::clamp_max",
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
    "aten::rsub",
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
    "aten::tanh",
    "aten::topk",
    "aten::tril",
    "aten::triu",
    "aten::unflatten",
    "aten::view_as",
)


def register(
    op: str, kind: str, handles: dict[str, Handle] = HANDLES
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Let a function of the input shapes count the FLOPs of `op`; a second formula for one op is refused."""

    def decorate(formula: Callable[..., int]) -> Callable[..., int]:
        def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
            del outputs
            flops = formula(*_shapes(inputs))
            if kind == PROJECTION:
                return Counter({PROJECTION: flops})
            return core_counts(flops)

        _add_handle(op, handle, handles)
        return formula

    return decorate


def _add_handle(op: str, handle: Handle, handles: dict[str, Handle] = HANDLES) -> None:
    assert op not in handles, f"{op} has a formula already"
    handles[op] = handle


def core_counts(flops: int) -> Counter[str]:
    """The counts of a product of two activations over the full square."""
    return Counter({CORE: flops, CAUSAL_CORE: flops // 2, SQUARE_CORE: flops})


def counted(by_module: Mapping[str, Counter[str]]) -> dict[str, int]:
    """Each module's FLOPs, every one of them once."""
    return {name: sum(counts[kind] for kind in COUNTED) for name, counts in by_module.items()}


def _shapes(inputs: Sequence[Any]) -> list[Shape]:
    return [value.type().sizes() for value in inputs if value.isCompleteTensor()]


@register("aten::linear", PROJECTION)
def linear_flops(x: Shape, weight: Shape, bias: Shape | None = None) -> int:
    """(…, in) with (out, in): 2 in out per row; adding the bias multiplies nothing."""
    del bias
    return 2 * prod(x) * weight[0]


@register("aten::matmul", CORE)
def matmul_flops(left: Shape, right: Shape) -> int:
    """(…, n, k) with (…, k, m), the leading sizes equal."""
    assert left[:-2] == right[:-2] and left[-1] == right[-2], f"no formula for matmul of {left} and {right}"
    return 2 * prod(left) * right[-1]


@register("aten::scaled_dot_product_attention", CORE)
def attention_flops(query: Shape, key: Shape, value: Shape) -> int:
    """(B, H, S, C), (B, G, S, C), (B, G, S, C'): scores and weighted values over the full square."""
    batch, heads, length, channels = query
    assert key[0] == value[0] == batch and key[2] == value[2] and heads % key[1] == 0
    return 2 * batch * heads * length * key[2] * (channels + value[3])


def banded_attention_flops(query: Shape, key: Shape, value: Shape, window: int | None) -> int:
    """As `attention_flops`, but each query visits no more keys than the window holds."""
    length = query[2]
    return attention_flops(query, key, value) // length * min(window or length, length)


def _flash_attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Of our own fused op; its causal share of a band of S W pairs is S W - W^2 / 2."""
    del outputs
    query, key, value = _shapes(inputs)[:3]
    length, window = query[2], inputs[WINDOW_ARGUMENT].toIValue()
    band = min(window or length, length)
    square = attention_flops(query, key, value)
    return Counter(
        {
            CORE: banded_attention_flops(query, key, value, window),
            CAUSAL_CORE: square // (2 * length**2) * (2 * length * band - band**2),
            SQUARE_CORE: square,
        }
    )


_add_handle(FLASH_ATTENTION, _flash_attention)


@register("aten::_grouped_mm", PROJECTION)
def grouped_mm_flops(rows: Shape, weights: Shape, ends: Shape) -> int:
    """(T, in) rows, each with one of E matrices (E, in, out): 2 in out per row, however the rows are grouped."""
    assert len(rows) == 2 and len(weights) == 3 and ends == [weights[0]] and rows[1] == weights[1]
    return 2 * prod(rows) * weights[2]


def traced_flops(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Counts, AttentionCore]:
    """FLOPs of one forward by component, and the attention core in them, by fvcore's trace.

    Raises `AssertionError` naming the ops that have no formula.
    """
    by_module = trace(module, inputs, HANDLES, ZERO_FLOP_OPS)
    return counts_of_modules(module, counted(by_module)), core_of(by_module[""])


def core_of(counts: Counter[str]) -> AttentionCore:
    """The attention core among the FLOPs by kind that a trace counted."""
    return AttentionCore(as_run=counts[CORE], causal=counts[CAUSAL_CORE], full_square=counts[SQUARE_CORE])


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

    Its formulas are torch's own, but for grouped products and our fused attention, which it does not know.
    """
    counter = FlopCounterMode(display=False, custom_mapping=DISPATCH_FORMULAS)
    with torch.no_grad(), counter:
        module(*inputs)
    root = type(module).__name__
    totals = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    entire = totals.pop("Global", 0)
    assert totals.get(root, 0) == entire, f"{entire} FLOPs in all, {totals.get(root, 0)} of them in modules"
    return counts_of_modules(module, {name.removeprefix(root).removeprefix("."): n for name, n in totals.items()})


def dispatched_grouped_mm(left: Shape, right: Shape, *_: object, **__: object) -> int:
    """As `grouped_mm_flops`, and of its backward pass: no row of any group is multiplied by another group's matrix.

    The gradient of the rows is the same product with (E, out, in); that of the matrices is (in, T) with (T, out), whose
    T is cut into E groups.
    """
    assert len(left) == 2, f"no formula for a grouped product of {left} and {right}"
    return 2 * prod(left) * right[-1]


def _dispatched_flash_attention(
    query: Shape,
    key: Shape,
    value: Shape,
    sinks: Shape | None,
    scale: float,
    window: int | None,
    *_: object,
    **__: object,
) -> int:
    del sinks, scale
    return banded_attention_flops(query, key, value, window)


def _dispatched_flash_attention_backward(
    gradient: Shape,
    query: Shape,
    key: Shape,
    value: Shape,
    sinks: Shape | None,
    scale: float,
    window: int | None,
    *_: object,
    **__: object,
) -> int:
    """Five products over the pairs that the forward pass visits, as torch counts its own fused kernels' backward.

    The scores once more, and the gradients of probabilities, values, queries and keys (Dao 2023, arXiv 2307.08691,
    §3.1.2).
    """
    del sinks, scale
    length = query[2]
    square: int = sdpa_backward_flop_count(gradient, query, key, value)
    return square // length * min(window or length, length)


DISPATCH_FORMULAS = {
    torch.ops.aten._grouped_mm: dispatched_grouped_mm,
    torch.ops.model_training_cost.flash_attention: _dispatched_flash_attention,
    torch.ops.model_training_cost.flash_attention_backward: _dispatched_flash_attention_backward,
}
