"""FLOP formulas, and ops without products, of models that transformers builds, beyond those of our own modules."""

from collections import Counter
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import nn

from counting.measurements.trace import (
    HANDLES,
    PROJECTION,
    ZERO_FLOP_OPS,
    Handle,
    Shape,
    attention_flops,
    core_counts,
    grouped_mm_flops,
    register,
)
from counting.via_transformers.structure import block_matrices, experts_in

FOREIGN_HANDLES: dict[str, Handle] = {
    op: handle for op, handle in HANDLES.items() if op not in ("aten::matmul", "aten::_grouped_mm")
}

# Ops without a handle in fvcore that our own modules do not use: elementwise arithmetic, selection, data movement.
FOREIGN_ZERO_FLOP_OPS = (
    *ZERO_FLOP_OPS,
    "aten::abs",
    "aten::all",
    "aten::argsort",
    "aten::bitwise_and",
    "aten::broadcast_tensors",
    "aten::broadcast_to",
    "aten::clamp_min",
    "aten::clone",
    "aten::cumsum",
    "aten::diff",
    "aten::div_",
    "aten::erfinv",
    "aten::exp",
    "aten::expm1",
    "aten::feature_dropout",
    "aten::fill_",
    "aten::flip",
    "aten::histc",
    "aten::index_add",
    "aten::index_add_",
    "aten::layer_norm",
    "aten::le",
    "aten::linalg_vector_norm",
    "aten::log",
    "aten::log_softmax",
    "aten::logical_and",
    "aten::logical_not",
    "aten::logical_or",
    "aten::lt",
    "aten::masked_fill_",
    "aten::maximum",
    "aten::min",
    "aten::minimum",
    "aten::movedim",
    "aten::mul_",
    "aten::ne",
    "aten::neg",
    "aten::new_ones",
    "aten::norm",
    "aten::numpy_T",
    "aten::one_hot",
    "aten::pad",
    "aten::repeat",
    "aten::scalar_tensor",
    "aten::scatter_",
    "aten::scatter_add",
    "aten::softplus",
    "aten::sqrt",
    "aten::std",
    "aten::sub_",
    "aten::unfold",
    "aten::var",
    "aten::where",
)


@register("aten::addmm", PROJECTION, FOREIGN_HANDLES)
def addmm_flops(bias: Shape, x: Shape, weight: Shape) -> int:
    """(n, k) with (k, m), as in GPT-2's Conv1D: 2 k m per row; adding the bias multiplies nothing."""
    del bias
    return 2 * prod(x) * weight[-1]


@register("aten::mm", PROJECTION, FOREIGN_HANDLES)
def mm_flops(x: Shape, weight: Shape) -> int:
    """(n, k) with (k, m)."""
    return 2 * prod(x) * weight[-1]


def broadcast_matmul_flops(left: Shape, right: Shape) -> int:
    """(…, n, k) with (…, k, m), leading sizes broadcast against each other."""
    assert len(left) >= 2 and len(right) >= 2 and left[-1] == right[-2], f"no formula for matmul of {left} and {right}"
    leading: Shape = list(torch.broadcast_shapes(tuple(left[:-2]), tuple(right[:-2])))
    return 2 * prod(leading) * left[-2] * left[-1] * right[-1]


def _attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Inputs are queries, keys and values; a mask may follow, which changes no product's size."""
    del outputs
    return core_counts(attention_flops(*(value.type().sizes() for value in inputs[:3])))


def _nothing(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    del inputs, outputs
    return Counter()


class LayerHandles:
    """The handles for the trace of one layer; records the numbers of rows of its grouped products.

    A product of two activations counts for the attention core, unless each token's are multiplied alone. `length` is
    that of the sequence. A plain product with a stacked weight is refused: it would multiply every token with every
    expert.
    """

    def __init__(self, layer: nn.Module, length: int) -> None:
        shapes = [
            tuple(weight.shape)
            for experts in experts_in(layer).values()
            for weight in experts.parameters(recurse=False)
            if weight.dim() == 3
        ]
        self._stacked = {*shapes, *((e, m, n) for e, n, m in shapes)}
        blocks = block_matrices(layer)
        self._blocks = {*blocks, *((b, m, n) for b, n, m in blocks)}
        self._length = length
        self.grouped_rows: set[int] = set()

    def handles(self) -> dict[str, Handle]:
        """Op -> handle, for `counting.measurements.trace.trace`."""
        return {
            **FOREIGN_HANDLES,
            "aten::matmul": self._product,
            "aten::bmm": self._product,
            "aten::baddbmm": lambda inputs, outputs: self._product(inputs[1:], outputs),
            "aten::scaled_dot_product_attention": _attention,
            "aten::_grouped_mm": self._grouped,
            "prim::PythonOp.SqrtBoundDerivative": _nothing,  # RecurrentGemma's square root
            "prim::PythonOp.GeLUFunction": _nothing,  # Bloom's own gelu, which fvcore does not ignore by itself
        }

    def _product(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
        del outputs
        left, right = (value.type().sizes() for value in inputs[:2])
        assert not self._stacked & {tuple(left), tuple(right)}, (
            f"a product with the stacked weights of all experts, {left} and {right}: it is not one of grouped rows"
        )
        flops = broadcast_matmul_flops(left, right)
        with_weight = min(len(left), len(right)) <= 2 or not self._blocks.isdisjoint({tuple(left[-3:]), tuple(right)})
        return Counter({PROJECTION: flops}) if with_weight or self._is_of_one_token(left, right) else core_counts(flops)

    def _is_of_one_token(self, left: Shape, right: Shape) -> bool:
        """Whether each token's own matrices are multiplied, as where streams of a residual are mixed."""
        among = (self._length in left[:-2], self._length in right[:-2])
        return all(among) and self._length not in (*left[-2:], right[-1])

    def _grouped(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
        del outputs
        shapes = [value.type().sizes() for value in inputs if value.isCompleteTensor()]
        self.grouped_rows.add(shapes[0][0])
        return Counter({PROJECTION: grouped_mm_flops(*shapes)})
