"""What is between the parts of a layer that ranks divide: the residual stream, gathered before them and summed after.

The stream is a plain tensor (B, S, D): with sequence parallelism, `Shard(1)`, it has this rank's positions, else,
`Replicate()`, all of them. Its collectives are those of torch's DTensor.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.distributed.tensor.placement_types import Placement

from torch_models.parallel.parameters import LocalParameters, Part


class Block(LocalParameters):
    """A module whose first argument all ranks need whole, and whose outputs on all ranks add up to its output."""

    def __init__(
        self, parts: Mapping[str, Part], stream: Placement, *, gathers: bool = True, sums: bool = True
    ) -> None:
        super().__init__(parts)
        self.stream = stream
        self.gathers = gathers
        self.sums = sums

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if self.gathers:
            module.register_forward_pre_hook(partial(_gather_input, device_mesh, self.stream))
        super()._apply(module, device_mesh)
        if self.sums:
            module.register_forward_hook(partial(_sum_output, device_mesh, self.stream))
        return module


def _gather_input(mesh: DeviceMesh, stream: Placement, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Replace the first argument by that of all ranks; backward sums its gradient over them."""
    del module
    x = DTensor.from_local(args[0], mesh, [stream], run_check=False)
    whole = x.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
    return whole, *args[1:]


def _sum_output(mesh: DeviceMesh, stream: Placement, module: nn.Module, args: object, output: Tensor) -> Tensor:
    """Sum the output over ranks; backward gathers its gradient."""
    del module, args
    return DTensor.from_local(output, mesh, [Partial()], run_check=False).redistribute(placements=[stream]).to_local()
