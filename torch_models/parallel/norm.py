"""RMSNorm over a width that ranks divide: OLMo-2 normalises the queries, and the keys, of all heads together.

The sum of squares is one number for each token, which is summed over the ranks in fp32. Backward needs one more such
sum. No kernel of torch does it; this one keeps for backward what torch's fused norm keeps.
"""

from functools import partial
from typing import Any

import torch
import torch.distributed._functional_collectives as collectives
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from torch_models.modules.layers import RMSNorm
from torch_models.parallel.parameters import ROWS, LocalParameters


class DividedNorm(LocalParameters):
    """A norm whose normalised dimension is divided over the ranks, as its weight is."""

    def __init__(self) -> None:
        super().__init__({"weight": ROWS})

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, RMSNorm) and not module.unit_offset
        module.over_ranks = partial(_norm, device_mesh)
        return super()._apply(module, device_mesh)


def _norm(mesh: DeviceMesh, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    out: Tensor = _DividedNorm.apply(x, weight, eps, mesh)  # type: ignore[no-untyped-call]
    return out


class _DividedNorm(torch.autograd.Function):
    """With r = 1 / sqrt(mean(x²) + eps): y = x r w. For gradient g: dx = r (g w - x r mean(g w x r)), dw = sum(g x r).

    The means are over the whole width, the sum over all tokens.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, mesh: DeviceMesh) -> Tensor:
        precision = torch.float64 if x.dtype == torch.float64 else torch.float32
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=precision).square_()
        ctx.mesh = mesh
        inverse_rms = (_mean(squares, x, mesh) + eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse_rms)
        return (x * inverse_rms).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, inverse_rms = ctx.saved_tensors
        normed = x * inverse_rms
        of_weight = (normed * gradient).flatten(0, -2).sum(0).to(weight.dtype)
        scaled = gradient * weight.to(inverse_rms.dtype)
        mean = _mean((normed * scaled).sum(-1, keepdim=True), x, ctx.mesh)
        of_x = scaled.sub_(normed.mul_(mean)).mul_(inverse_rms).to(x.dtype)
        return of_x, of_weight, None, None


def _mean(sums: Tensor, x: Tensor, mesh: DeviceMesh) -> Tensor:
    """The mean over the width, from the sums of each rank."""
    total = collectives.all_reduce(sums, "sum", mesh)
    arrived: Tensor = total.wait() if isinstance(total, collectives.AsyncCollectiveTensor) else total
    return arrived / (x.shape[-1] * mesh.size())
