"""FLOPs of one op that torch dispatches, forward or backward: 2 per multiply-add of matrix products and convolutions.

The formulas are those that torch's own counter uses (torch/utils/flop_counter.py), to which `torch_models` adds its ops
and those that its modules run; and ours for other ops where torch has none or a wrong one. Every other op must be in a
list or have a tag that shows that it multiplies no matrices. An unknown op is an error, never 0.
"""

from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Size, Tensor
from torch._ops import OpOverload
from torch.utils.flop_counter import flop_registry

from counting.measurements.ops.without_products import NAMESPACES_WITHOUT_PRODUCTS, OPS_WITHOUT_PRODUCTS
from torch_models.errors import UserError

# The first three are imported for the formulas that they register with torch.
from torch_models.modules.kernels import flash_attention as _flash_attention  # noqa: F401
from torch_models.modules.kernels import grouped_product as _grouped_product  # noqa: F401
from torch_models.modules.kernels import index_scores as _index_scores  # noqa: F401
from torch_models.modules.kernels.flops import grouped_product_flops

aten = torch.ops.aten

TAGS_WITHOUT_PRODUCTS = frozenset({torch.Tag.pointwise, torch.Tag.reduction, torch.Tag.view_copy})

FFN_WEIGHTS = 8  # their first position among the arguments of an encoder layer after the output projection's weight


def op_flops(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None, out: Any) -> int:
    """FLOPs of `out = function(*args, **kwargs)`, one dispatched op; 0 if it multiplies no matrices.

    A multiplication of complex numbers counts like one of real numbers. Raises `UserError` naming the op if it has no
    formula and is not known to multiply no matrices.
    """
    if not isinstance(function, OpOverload):  # a higher-order op, which runs functions of its own
        raise _unknown(str(function))
    packet = function.overloadpacket
    formula = OP_FORMULAS.get(packet)
    if formula is not None:
        shapes = {name: _shape(value) for name, value in (kwargs or {}).items()}
        return formula(*map(_shape, args), **shapes, out_shape=_shape(out))
    formula = flop_registry.get(packet)
    if formula is not None:
        return int(formula(*args, **(kwargs or {}), out_val=out))
    if not _multiplies_nothing(packet):
        raise _unknown(str(function))
    return 0


def _shape(value: Any) -> Any:
    """The shape of a tensor; for a tuple or list the shapes of its items; any other value unchanged."""
    if isinstance(value, Tensor):
        return value.shape
    return tuple(map(_shape, value)) if isinstance(value, tuple | list) else value


def _unknown(name: str) -> UserError:
    return UserError(
        f"{name}: no FLOP formula for this op, and it is not known to multiply no matrices; "
        "register a formula with torch.utils.flop_counter.register_flop_formula"
    )


@cache
def _multiplies_nothing(packet: Any) -> bool:
    """Whether an op without a formula is known to multiply no matrices."""
    namespace, _, name = packet._qualified_op_name.partition("::")
    if namespace != "aten":
        return namespace in NAMESPACES_WITHOUT_PRODUCTS
    # In-place and _foreach_ variants are looked up by the name of the out-of-place op on one tensor.
    names = {name, name.removesuffix("_")}
    names |= {each.removeprefix("_foreach_") for each in names}
    return any(each in OPS_WITHOUT_PRODUCTS or _is_tagged(each) for each in names)


def _is_tagged(name: str) -> bool:
    """Whether torch tags the op as elementwise, a reduction or a view."""
    packet = getattr(aten, name, None)
    if packet is None:
        return False
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    return any(each.is_view or bool(TAGS_WITHOUT_PRODUCTS.intersection(each.tags)) for each in overloads)


def _product(left: Size, right: Size, *_: object, **__: object) -> int:
    """(m, k) or (b, m, k) with (k, n) or (b, k, n)."""
    return 2 * prod(left) * right[-1]


def _product_added(total: Size, left: Size, right: Size, *_: object, **__: object) -> int:
    """A product added to another tensor; the addition counts 0. `addbmm` also sums over b."""
    del total
    return _product(left, right)


def _linear(x: Size, weight: Size, *_: object, **__: object) -> int:
    """(…, in) with (out, in)."""
    return 2 * prod(x) * prod(weight[:-1])


def _matrix_vector(matrix: Size, *_: object, **__: object) -> int:
    """(n, m) with (m), or (m) with (m): as many multiply-adds as the matrix has elements."""
    return 2 * prod(matrix)


def _matrix_vector_added(total: Size, matrix: Size, *_: object, **__: object) -> int:
    del total
    return _matrix_vector(matrix)


def _outer_product_added(total: Size, left: Size, right: Size, *_: object, **__: object) -> int:
    """(n, 1) with (1, m)."""
    del total
    return 2 * prod(left) * prod(right)


def _convolution_backward(
    gradient: Size,
    x: Size,
    weight: Size,
    bias: object,
    stride: object,
    padding: object,
    dilation: object,
    transposed: bool,
    output_padding: object,
    groups: int,
    output_mask: tuple[bool, ...],
    **_: object,
) -> int:
    """As many FLOPs as the forward pass for each gradient that is computed: the input's and the weight's.

    Torch's own formula (2.13) counts the weight's gradient `groups` times.
    """
    del bias, stride, padding, dilation, output_padding, groups
    points = x[2:] if transposed else gradient[2:]
    return 2 * x[0] * prod(points) * prod(weight) * sum(output_mask[:2])


def _attention_block(
    query: Size,
    key: Size,
    value: Size,
    embed_dim: int,
    heads: int,
    qkv_weight: Size,
    qkv_bias: Size,
    out_weight: Size,
    *_: object,
    **__: object,
) -> int:
    """`nn.MultiheadAttention` of (B, S, E) in one op, as it runs without gradients: four projections and the core."""
    del key, value, embed_dim, heads, qkv_bias
    return 2 * prod(query[:-1]) * (prod(qkv_weight) + prod(out_weight)) + 4 * prod(query) * query[1]


def _encoder_layer(
    x: Size, embed_dim: int, heads: int, qkv_weight: Size, qkv_bias: Size, out_weight: Size, *rest: Any, **_: object
) -> int:
    """`nn.TransformerEncoderLayer` of (B, S, E) in one op, as it runs without gradients."""
    up, down = rest[FFN_WEIGHTS], rest[FFN_WEIGHTS + 2]
    block = _attention_block(x, x, x, embed_dim, heads, qkv_weight, qkv_bias, out_weight)
    return int(block + 2 * prod(x[:-1]) * (prod(up) + prod(down)))


# A formula receives the op's arguments, with shapes for tensors, and the output's shape as `out_shape`. These formulas
# take precedence over those that are registered with torch.
OP_FORMULAS: dict[Any, Callable[..., int]] = {
    aten._scaled_grouped_mm: grouped_product_flops,
    aten._int_mm: _product,
    aten._addmm_activation: _product_added,
    aten.addmm_: _product_added,
    aten.addbmm: _product_added,
    aten.addbmm_: _product_added,
    aten.baddbmm_: _product_added,
    aten.linear: _linear,
    aten.mv: _matrix_vector,
    aten.dot: _matrix_vector,
    aten.vdot: _matrix_vector,
    aten.addmv: _matrix_vector_added,
    aten.addmv_: _matrix_vector_added,
    aten.addr: _outer_product_added,
    aten.addr_: _outer_product_added,
    aten.convolution_backward: _convolution_backward,
    aten._native_multi_head_attention: _attention_block,
    aten._transformer_encoder_layer_fwd: _encoder_layer,
}
for _name in ("_scaled_mm_v2", "_scaled_grouped_mm_v2"):  # of newer versions of torch
    if hasattr(aten, _name):
        OP_FORMULAS[getattr(aten, _name)] = _product if _name == "_scaled_mm_v2" else grouped_product_flops
