"""Measured forward FLOPs by fvcore's trace, on the meta device.

fvcore counts multiply-adds, and for several products it has no handle or a wrong one. Here each op that multiplies
matrices has our own handle, which counts 2 FLOPs per multiply-add. An op that has no handle and is not known to
multiply no matrices is an error.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

with warnings.catch_warnings():  # importing fvcore scripts its focal losses, which nothing here uses
    warnings.simplefilter("ignore", DeprecationWarning)
    from fvcore.nn.jit_analysis import JitModelAnalysis

from torch import nn

from counting.counts import AttentionCore, Counts, LayerCounts, ModelCounts, MtpCounts, OutsideCounts
from counting.measurements.components import counts_of_modules
from counting.measurements.probe import Probe
from counting.setup import MicroBatch
from torch_models.modules.kernels.flash_attention import NAME as FLASH_ATTENTION
from torch_models.modules.kernels.grouped_product import NAME as GROUPED_PRODUCT
from torch_models.modules.kernels.index_scores import NAME as INDEX_SCORES

Shape = list[int]

PROJECTION = "projection"  # products of activations with weights
CORE = "attention core"  # products of two activations, as run
CAUSAL_CORE = "attention core, causal"  # other counts of the same products, not in any sum
SQUARE_CORE = "attention core, full square"
COUNTED = (PROJECTION, CORE)
# Positions of window, chunk and chosen keys among the arguments of our fused op.
WINDOW_ARGUMENT, CHUNK_ARGUMENT, CHOSEN_ARGUMENT = 5, 7, 8

# Functions that multiply matrices, by name: what they return stays in the trace, used or not.
PRODUCTS = {
    "__matmul__",
    "__rmatmul__",
    "_grouped_mm",
    "addbmm",
    "addmm",
    "baddbmm",
    "bilinear",
    "bmm",
    "chain_matmul",
    "einsum",
    "grouped_mm",
    "linear",
    "matmul",
    "mm",
    "multi_dot",
    "scaled_dot_product_attention",
    "tensordot",
}

Handle = Callable[[Any, Any], Counter[str]]
HANDLES: dict[str, Handle] = {}

# Ops without a handle in fvcore that multiply no matrices: elementwise arithmetic, selection and data movement.
ZERO_FLOP_OPS = (
    "aten::__or__",
    "aten::add",
    "aten::add_",
    "aten::bitwise_or",
    "aten::clamp_max",
    "aten::cos",
    "aten::cross_entropy_loss",
    "aten::div",
    "aten::embedding",
    "aten::empty_like",
    "aten::expand_as",
    "aten::gelu",
    "aten::index_select",
    "aten::layer_norm",
    "aten::log1p",
    "aten::mean",
    "aten::mul",
    "aten::ne",
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
    """Register a function of the input shapes as the FLOP formula of `op`; an op has only one formula."""

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
    """Each module's FLOPs: projections and attention core as run."""
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


def _flash_attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Counts of our own fused op, each a sum over blocks of queries: one, or one for each chunk of positions.

    Each query of a block visits at most `window` of its keys; the causal part of a band of S W pairs is S W - W^2 / 2.
    Keys that are chosen for each query count as a window of as many, also where a key stands for several positions: of
    S queries and T keys, S K - S / T K^2 / 2 pairs are causal.
    """
    del outputs
    query, key, value = _shapes(inputs)[:3]
    window, chunk = (inputs[place].toIValue() for place in (WINDOW_ARGUMENT, CHUNK_ARGUMENT))
    length, square = query[2], attention_flops(query, key, value)
    if inputs[CHOSEN_ARGUMENT].isCompleteTensor():
        keys, chosen = key[2], inputs[CHOSEN_ARGUMENT].type().sizes()[2]
        causal = square * (2 * keys * chosen - chosen**2) // (2 * keys**2)
        return Counter({CORE: square // keys * chosen, CAUSAL_CORE: causal, SQUARE_CORE: square})
    blocks = [min(chunk or length, length - start) for start in range(0, length, chunk or length)]
    bands = [(block, min(window or block, block)) for block in blocks]
    return Counter(
        {
            CORE: square // length**2 * sum(block * band for block, band in bands),
            CAUSAL_CORE: square // (2 * length**2) * sum(2 * block * band - band**2 for block, band in bands),
            SQUARE_CORE: square,
        }
    )


_add_handle(FLASH_ATTENTION, _flash_attention)


@register(INDEX_SCORES, PROJECTION)
def index_scores_flops(query: Shape, key: Shape, weights: Shape) -> int:
    """(B, S, H, C), (B, S, C), (B, S, H): the scores of each head, and their sum with weights, for each pair.

    They choose keys and are no part of the core of attention.
    """
    batch, length, heads, channels = query
    assert key == [batch, length, channels] and weights == [batch, length, heads]
    return 2 * batch * length * length * (heads * channels + heads)


@register("aten::bmm", PROJECTION)
def bmm_flops(left: Shape, right: Shape) -> int:
    """(B, n, k) with (B, k, m): an indexer's scores with eager kernels."""
    assert left[0] == right[0] and left[2] == right[1]
    return 2 * prod(left) * right[2]


@register(GROUPED_PRODUCT, PROJECTION)
@register("aten::_grouped_mm", PROJECTION)
def grouped_mm_flops(rows: Shape, weights: Shape, ends: Shape) -> int:
    """(T, in) rows, each with one of E matrices (E, in, out): 2 in out per row, however the rows are grouped."""
    assert len(rows) == 2 and len(weights) == 3 and ends == [weights[0]] and rows[1] == weights[1]
    return 2 * prod(rows) * weights[2]


def traced_flops(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Counts, AttentionCore]:
    """FLOPs of one forward pass by component, and the attention core in them, by fvcore's trace.

    Raises `AssertionError` naming the ops that have no formula.
    """
    by_module = trace(module, inputs, HANDLES, ZERO_FLOP_OPS)
    return counts_of_modules(module, counted(by_module)), core_of(by_module[""])


def core_of(counts: Counter[str]) -> AttentionCore:
    """The attention core in a trace's FLOPs by kind."""
    return AttentionCore(as_run=counts[CORE], causal=counts[CAUSAL_CORE], full_square=counts[SQUARE_CORE])


def trace(
    module: nn.Module, inputs: tuple[Any, ...], handles: Mapping[str, Handle], zero_flop_ops: Iterable[str]
) -> dict[str, Counter[str]]:
    """FLOPs of one forward pass by kind, for each module including its submodules, by fvcore's trace.

    Products whose result is not used, such as scores that only select keys, are counted: torch would drop them from the
    trace, so that during the trace the module returns the results of all its products too. Raises `AssertionError`
    naming the ops that are neither in `handles` nor in `zero_flop_ops`.
    """
    analysis = JitModelAnalysis(module, inputs)
    analysis.set_op_handle(**handles, **dict.fromkeys(zero_flop_ops))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    products = _Products()

    def with_products(module: nn.Module, args: Any, out: Any) -> tuple[Any, ...]:
        return (out, *products.results)

    hook = module.register_forward_hook(with_products)
    try:
        with torch.no_grad(), products:
            by_module: dict[str, Counter[str]] = analysis.by_module_and_operator()
    finally:
        hook.remove()
    unknown = sorted(analysis.unsupported_ops())
    assert not unknown, f"ops without a FLOP formula: {', '.join(unknown)}"
    return by_module


class _Products(TorchFunctionMode):
    """Collects what the functions in `PRODUCTS` return."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[torch.Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", None) in PRODUCTS:
            self.results += [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        return out


def trace_model(probe: Probe, batch: MicroBatch) -> ModelCounts:
    """Forward FLOPs of one micro-batch, and the attention core in them."""
    stream = probe.stream(batch)
    head_flops = traced_flops(probe.model.lm_head, probe.head_inputs(batch))[0]
    layers = []
    for layer, (spec, count) in zip(probe.layers, probe.groups, strict=True):
        flops, core = traced_flops(layer, (stream, probe.rotary(spec, batch)))
        layers.append(LayerCounts(kind=spec.kind, count=count, forward_flops=flops, attention_core_flops=core))
    mtp_flops, mtp_core = Counts(), AttentionCore()
    for module, spec, count in probe.mtp_kinds():
        flops, core = traced_flops(module, (stream, stream, probe.rotary(spec, batch)))
        mtp_flops += (flops + head_flops) * count
        mtp_core += core * count
    return ModelCounts(
        layers=tuple(layers),
        outside=OutsideCounts(forward_flops=head_flops),
        mtp=MtpCounts(forward_flops=mtp_flops, attention_core_flops=mtp_core),
    )
