"""FLOP formulas for `torch.utils.flop_counter.FlopCounterMode`, so that torch's own counter is right for our modules.

A formula is a function of the op's arguments, with shapes for tensors. Those of our ops stand beside the ops; here are
those of torch's ops that our modules run and for which torch has no formula. One multiply-add is 2 FLOPs.
"""

from collections.abc import Callable
from math import prod
from typing import Any, TypeVar

import torch
from torch import Size
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_backward_flop_count, sdpa_flop_count

Formula = TypeVar("Formula", bound=Callable[..., int])

_aten = torch.ops.aten


def register(*ops: Any) -> Callable[[Formula], Formula]:
    """Register a function of shapes as the formula of `ops` with torch, and return it unchanged.

    An op that has a formula already keeps it: torch's own in a later version, or one that the user has registered.
    """

    def decorate(formula: Formula) -> Formula:
        register_flop_formula([op for op in ops if op not in flop_registry])(formula)
        return formula

    return decorate


@register(
    _aten._scaled_dot_product_flash_attention_for_cpu,
    _aten._scaled_dot_product_fused_attention_overrideable,
)
def attention_flops(query: Size, key: Size, value: Size, *_: object, **__: object) -> int:
    """FLOPs of scores and weighted values over the full square, as torch counts its fused kernels on CUDA."""
    return int(sdpa_flop_count(query, key, value))


@register(
    _aten._scaled_dot_product_flash_attention_for_cpu_backward,
    _aten._scaled_dot_product_fused_attention_overrideable_backward,
)
def attention_backward_flops(gradient: Size, query: Size, key: Size, value: Size, *_: object, **__: object) -> int:
    """FLOPs of five products over the full square, as torch counts its fused kernels on CUDA."""
    return int(sdpa_backward_flop_count(gradient, query, key, value))


@register(_aten._grouped_mm)
def grouped_product_flops(left: Size, right: Size, *_: object, **__: object) -> int:
    """FLOPs of a grouped product: each of T rows is multiplied only by the matrix of its group, whatever the sizes.

    (T, k) with (E, k, n), and the gradient of the rows, the same with (E, n, k); the gradient of the matrices,
    (k, T) with (T, n), where T is split into E groups; (E, m, k) with (E, k, n); (E, m, k) with (k, T).
    """
    if len(left) == 3 and len(right) == 2:
        return 2 * prod(left[1:]) * right[1]
    return 2 * prod(left) * right[-1]
