"""What `torch.autocast` means for the operations that torch does not cast by itself.

Autocast runs matrix products in a lower precision whatever the dtype of the weights. Torch does so for its own linear
layers and attention; the grouped products of experts and the fp32 arithmetic of the router need the functions here.
None of them changes anything without autocast. The meta device has no autocast.
"""

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor


def cast_for_products(x: Tensor) -> Tensor:
    """Return `x` in the dtype in which autocast runs matrix products on its device, if it is enabled there.

    As in torch, fp64 is not cast.
    """
    if x.is_meta or x.dtype == torch.float64 or not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which operations run in the dtypes of their arguments."""
    if device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
