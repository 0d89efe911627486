"""What kernels allocate beside their results, which no op shows: by rule, from the arguments of the op."""

from typing import Any, NamedTuple

import torch

_aten = torch.ops.aten
_PRODUCTS = (_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default)
_FP32 = 4
_CUBLAS = 32 * 2**20


class Workspace(NamedTuple):
    """Bytes that stay allocated from now on, and bytes of one kernel."""

    kept: tuple[int, ...] = ()
    temporary: tuple[int, ...] = ()


_NONE = Workspace()


class Workspaces:
    """The workspaces of one process: an instance is called with each op that has run, and its arguments."""

    def __init__(self) -> None:
        self._handles: set[bool] = set()

    def __call__(self, function: Any, args: tuple[Any, ...]) -> Workspace:
        """What the kernel of this op allocates beside its result."""
        if function in _PRODUCTS:
            return self._of_product()
        if function is _aten._scaled_dot_product_flash_attention_backward.default:
            return _of_flash_backward(*args[1:3])
        return _NONE

    def _of_product(self) -> Workspace:
        """CuBLAS has a workspace for each handle, and each thread its handle: autograd's runs backward."""
        in_backward = torch._C._current_autograd_node() is not None
        if in_backward in self._handles:
            return _NONE
        self._handles.add(in_backward)
        return Workspace(kept=(_CUBLAS,))


def _of_flash_backward(query: torch.Tensor, key: torch.Tensor) -> Workspace:
    """The row sums of the gradient's product with the output, and the gradient of the queries in fp32.

    With grouped queries also the gradients of keys and values for each query head.
    """
    batch, heads, length, channels = query.shape
    rounded = -(-length // 128) * 128
    sizes = [_FP32 * batch * heads * rounded, _FP32 * batch * heads * rounded * channels]
    if key.shape[1] != heads:
        sizes += [batch * heads * key.shape[2] * channels * key.element_size()] * 2
    return Workspace(temporary=tuple(sizes))
