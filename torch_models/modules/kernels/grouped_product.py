"""Products of rows, sorted by group, with the matrix of their group, in every dtype and on every device.

Torch's `grouped_mm` is one kernel on CUDA, but its meta and compiled versions accept only bf16. For other dtypes there
is an op here that multiplies group by group, as torch itself does where it has no kernel. On the meta device it
allocates what torch allocates for bf16: the output, and in backward the gradient of the weights, then that of the rows.
"""

from collections.abc import Iterator
from math import prod

import torch
import torch.nn.functional as F
from torch import Size, Tensor

from torch_models.modules.kernels.flops import grouped_product_flops, register

NAME = "model_training_cost::grouped_product"


def grouped_product(rows_Tk: Tensor, weights_Ekn: Tensor, ends_E: Tensor) -> Tensor:
    """Multiply each row by the matrix of its group, (T, k) with (E, k, n) -> (T, n).

    `ends_E` is the index after the last row of each group, in int32. Rows and weights have one dtype.
    """
    if weights_Ekn.dtype == torch.bfloat16:
        return F.grouped_mm(rows_Tk, weights_Ekn, offs=ends_E)
    out: Tensor = product_by_group(rows_Tk, weights_Ekn, ends_E)
    return out


@torch.library.custom_op(NAME, mutates_args=(), schema="(Tensor rows, Tensor weights, Tensor ends) -> Tensor")
def product_by_group(rows_Tk: Tensor, weights_Ekn: Tensor, ends_E: Tensor) -> Tensor:
    """`grouped_product` as one op, whatever the dtype; it multiplies group by group.

    It reads the sizes of the groups, so on a CUDA device it waits for them; `F.grouped_mm` in bf16 does not.
    """
    out = rows_Tk.new_zeros(rows_Tk.shape[0], weights_Ekn.shape[2])
    for group, matrix in zip(_groups(ends_E), weights_Ekn, strict=True):
        torch.mm(rows_Tk[group], matrix, out=out[group])
    return out


@product_by_group.register_fake
def _(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], weights.shape[2])


@torch.library.custom_op(
    "model_training_cost::grouped_weight_gradient",
    mutates_args=(),
    schema="(Tensor rows, Tensor gradient, Tensor weights, Tensor ends) -> Tensor",
)
def grouped_weight_gradient(rows_Tk: Tensor, gradient_Tn: Tensor, weights_Ekn: Tensor, ends_E: Tensor) -> Tensor:
    """The gradient of the weights of a grouped product, (E, k, n), with their strides."""
    out = torch.empty_like(weights_Ekn)
    for group, matrix in zip(_groups(ends_E), out, strict=True):
        torch.mm(rows_Tk[group].t(), gradient_Tn[group], out=matrix)
    return out


@grouped_weight_gradient.register_fake
def _(rows: Tensor, gradient: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    return torch.empty_like(weights)


def _groups(ends_E: Tensor) -> Iterator[slice]:
    """The rows of each group."""
    first = 0
    for end in ends_E.tolist():
        yield slice(first, end)
        first = end


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs)


def _backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    rows, weights, ends = ctx.saved_tensors  # type: ignore[attr-defined]
    of_rows, of_weights = ctx.needs_input_grad[:2]  # type: ignore[attr-defined]
    weight_gradient = grouped_weight_gradient(rows, gradient, weights, ends) if of_weights else None  # as torch: first
    return product_by_group(gradient, weights.transpose(1, 2), ends) if of_rows else None, weight_gradient, None


product_by_group.register_autograd(_backward, setup_context=_save)

register(torch.ops.model_training_cost.grouped_product)(grouped_product_flops)


@register(torch.ops.model_training_cost.grouped_weight_gradient)
def grouped_weight_gradient_flops(rows: Size, gradient: Size, *_: object, **__: object) -> int:
    """(T, k) and (T, n), where T is split into groups: 2 k n for every row."""
    return 2 * prod(rows) * gradient[1]
