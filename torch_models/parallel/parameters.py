"""Parameters of which a rank has a part: DTensors, of which a module computes with the plain tensor of this rank.

Torch's own styles (ColwiseParallel, …) let every operation of a module run on DTensors. Here a module's DTensors are
replaced by their local tensors while the module runs. Its operations are then those of the undivided module on smaller
tensors: the same fused kernels, and no dispatch through DTensor.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle
from torch.distributed.tensor.placement_types import Placement


class Part(NamedTuple):
    """What a rank has of a parameter, and what its gradient on this rank is.

    ``part``: the gradient of the rank's part, or one that is equal on all ranks. ``term``: a term of the sum over
    ranks, which backward adds up at once. ``added``: the parameter is a bias of a sum over ranks; each rank adds an
    equal share of it, and its gradient is equal on all ranks.
    """

    placement: Placement
    gradient: Literal["part", "term", "added"] = "part"

    def local(self, parameter: DTensor) -> Tensor:
        """The tensor with which this rank computes."""
        if self.gradient == "term":
            # The redistribution does nothing in forward; in backward it sums the gradient over the ranks.
            return parameter.redistribute(placements=parameter.placements).to_local(grad_placements=[Partial()])
        local = parameter.to_local()
        if self.gradient == "added":
            shared: Tensor = _Share.apply(local, parameter.device_mesh.size())  # type: ignore[no-untyped-call]
            return shared
        return local


WHOLE = Part(Replicate())
SUMMED = Part(Replicate(), "term")
ADDED = Part(Replicate(), "added")
ROWS, COLUMNS = Part(Shard(0)), Part(Shard(1))
LINEAR_COLUMNS = {"weight": ROWS, "bias": ROWS}  # columns of the output are rows of the weight, which is (out, in)


class _Share(torch.autograd.Function):
    """x / ranks, of which the ranks' sum is x; the gradient is that of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: int) -> Tensor:
        del ctx
        return x / ranks

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        del ctx
        return gradient, None


class LocalParameters(ParallelStyle):
    """Divides a module's own parameters; while the module runs they are this rank's plain tensors."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        super().__init__()
        self.parts = parts

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name, parameter in list(module.named_parameters(recurse=False)):
            divide(module, name, parameter, device_mesh, self.parts[name].placement)
        swap = _Swap(self.parts)
        module.register_forward_pre_hook(swap.in_local)
        module.register_forward_hook(swap.back, always_call=True)
        return module


def divide(module: nn.Module, name: str, parameter: Tensor, mesh: DeviceMesh, placement: Placement) -> None:
    """Let the rank have its part of a parameter alone, as a DTensor; all ranks have the same values before."""
    if isinstance(parameter, DTensor):  # a tied one
        return
    divided = distribute_tensor(parameter, mesh, [placement], src_data_rank=None)
    local = divided.to_local()
    if local.untyped_storage().nbytes() > local.nbytes:  # a view would keep the whole parameter in memory
        shape, stride = divided.shape, divided.stride()
        divided = DTensor.from_local(local.clone(), mesh, [placement], run_check=False, shape=shape, stride=stride)
    module.register_parameter(name, nn.Parameter(divided, requires_grad=parameter.requires_grad))


class _Swap:
    """Hooks of one module's forward."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self.parts = parts
        self.divided: dict[str, nn.Parameter | None] = {}

    def in_local(self, module: nn.Module, args: object) -> None:
        """Put the local tensors where the module looks for its parameters."""
        del args
        self.divided = dict(module._parameters)
        for name, parameter in self.divided.items():
            if parameter is not None:
                assert isinstance(parameter, DTensor)
                module._parameters[name] = self.parts[name].local(parameter)  # type: ignore[assignment]

    def back(self, module: nn.Module, args: object, output: object) -> None:
        """Put the divided parameters back."""
        del args, output
        module._parameters.update(self.divided)
        self.divided = {}
