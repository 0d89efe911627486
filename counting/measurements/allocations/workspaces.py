"""What kernels allocate beside their results, which no op shows: by the rules of `counting.workspaces`."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from counting.workspaces import cublas_workspace_bytes, flash_backward_workspaces

_aten = torch.ops.aten
_PRODUCTS = (_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default)


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
        return Workspace(kept=(cublas_workspace_bytes(),))


def _of_flash_backward(query: Tensor, key: Tensor) -> Workspace:
    """Query (B, H, S, D) and key (B, G, S, D), where G divides H."""
    batch, heads, length, channels = query.shape
    sizes = flash_backward_workspaces(
        batch=batch,
        heads=heads,
        kv_heads=key.shape[1],
        length=length,
        kv_length=key.shape[2],
        head_dim=channels,
        element_bytes=key.element_size(),
    )
    return Workspace(temporary=sizes)
