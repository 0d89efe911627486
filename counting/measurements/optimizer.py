"""Measured memory of an update: torch's optimisers on meta parameters, with master weights if the recipe has them.

With master weights the parameters are updated one by one: the gradient is converted to the masters' format, a separate
optimiser makes its step, and the new weights are written back. So at most one gradient exists twice.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from counting.measurements.live_bytes import LiveBytes
from counting.recipes import ModelStates, Optimizer, Precision

MASTERS = torch.float32


class Update(NamedTuple):
    """The model states of an update, and its temporary memory."""

    states: list[ModelStates]  # of each parameter
    peak: int  # bytes of temporary tensors at the worst moment


def update_parameters(parameters: Sequence[Tensor], precision: Precision, optimizer: Optimizer) -> Update:
    """Run two steps of an optimiser on parameters with gradients; the first creates its state, the second is measured.

    Call it inside `measuring`.
    """
    updated = list(parameters)
    gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
    if precision.gradients_apart:
        gradients = [torch.empty_like(p, dtype=MASTERS) for p in parameters]
    assert len(gradients) == len(parameters)
    if precision.master_bytes:
        updated = [p.detach().to(MASTERS).requires_grad_() for p in parameters]
    optimizers = [_make(optimizer.name, [p]) for p in updated]
    _step(parameters, updated, gradients, optimizers)
    state = [x for made in optimizers for x in tree_leaves(dict(made.state)) if isinstance(x, Tensor)]
    with LiveBytes([*parameters, *updated, *state, *gradients]) as tracker:
        before = tracker.live
        tracker.watch()
        _step(parameters, updated, gradients, optimizers)
    states = []
    for parameter, master, gradient, made in zip(parameters, updated, gradients, optimizers, strict=True):
        moments = [x for x in made.state[master].values() if isinstance(x, Tensor) and x.shape == parameter.shape]
        states.append(
            ModelStates(
                weights=_bytes(parameter),
                gradients=_bytes(gradient),
                masters=0 if master is parameter else _bytes(master),
                moments=sum(map(_bytes, moments)),
            )
        )
    return Update(states, tracker.peak - before)


def _step(
    parameters: Sequence[Tensor],
    updated: Sequence[Tensor],
    gradients: Sequence[Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    for parameter, master, gradient, optimizer in zip(parameters, updated, gradients, optimizers, strict=True):
        if master is not parameter:
            master.grad = gradient.to(MASTERS)  # no copy if the gradient is already an fp32 buffer
        optimizer.step()
        if master is not parameter:
            master.grad = None
            with torch.no_grad():
                parameter.copy_(master)


def _make(name: str, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """AdamW with the fused kernel, SGD as a loop; neither allocates temporary tensors."""
    if name == "adamw":
        return torch.optim.AdamW(parameters, fused=True)
    # Muon has one momentum, like SGD; temporary memory of its orthogonalisation is not measured.
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9 if name == "muon" else 0.0, foreach=False)


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()
