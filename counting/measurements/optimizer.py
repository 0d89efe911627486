"""Measured memory of an update: torch's own optimisers on meta parameters, with master weights where a recipe has them.

With master weights the update goes from one parameter to the next: its gradient in the masters' format, the step of
an optimiser of its own, the new weights written back. So no more than one gradient exists twice.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from counting.measurements.live_bytes import LiveBytes
from counting.measurements.meta_device import fused_optimizers_on_meta
from counting.recipes import Optimizer, Precision

MASTERS = torch.float32


class Update:
    """Two steps of an optimiser on parameters that have their gradients: the first makes its state."""

    def __init__(self, parameters: Sequence[Tensor], precision: Precision, optimizer: Optimizer) -> None:
        self.moments: list[int] = []  # bytes of each parameter's moments, its masters and its gradient
        self.masters: list[int] = []
        self.gradients: list[int] = []
        self.parameters = parameters
        self.updated = list(parameters)
        self.buffers: list[Tensor] | None = None
        if precision.gradients_apart:
            self.buffers = [torch.empty_like(p, dtype=MASTERS) for p in parameters]
        if precision.master_bytes:
            self.updated = [p.detach().to(MASTERS).requires_grad_() for p in parameters]
        with fused_optimizers_on_meta():
            self.optimizers = [_make(optimizer.name, [p]) for p in self.updated]
            self._step()
            states = [x for made in self.optimizers for x in tree_leaves(dict(made.state)) if isinstance(x, Tensor)]
            gradients = [p.grad for p in parameters if p.grad is not None] + (self.buffers or [])
            with LiveBytes([*parameters, *self.updated, *states, *gradients]) as tracker:
                before = tracker.live
                tracker.watch()
                self._step()
            self.peak = tracker.peak - before
        for index, parameter in enumerate(parameters):
            updated, made = self.updated[index], self.optimizers[index].state[self.updated[index]]
            state = [x for x in made.values() if isinstance(x, Tensor) and x.shape == parameter.shape]
            self.moments.append(sum(map(_bytes, state)))
            self.masters.append(0 if updated is parameter else _bytes(updated))
            self.gradients.append(_bytes(self._gradient(index)))

    def _gradient(self, index: int) -> Tensor:
        gradient = self.parameters[index].grad if self.buffers is None else self.buffers[index]
        assert gradient is not None
        return gradient

    def _step(self) -> None:
        for index, (parameter, updated) in enumerate(zip(self.parameters, self.updated, strict=True)):
            if updated is not parameter:
                updated.grad = self._gradient(index).to(MASTERS)  # which is the buffer itself where there is one
            self.optimizers[index].step()
            if updated is not parameter:
                updated.grad = None
                with torch.no_grad():
                    parameter.copy_(updated)


def _make(name: str, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """By the fused kernel where torch has one on the meta device; the other loops make nothing on the way either."""
    if name == "adamw":
        return torch.optim.AdamW(parameters, fused=True)
    # Muon's one momentum is SGD's; what orthogonalising it takes on the way is not measured.
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9 if name == "muon" else 0.0, foreach=False)


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()
