"""Measured memory of an update: torch's own optimisers on meta parameters, with master weights where a recipe has them.

With master weights the update goes from one parameter to the next: its gradient in the masters' format, the step of
an optimiser of its own, the new weights written back. So no more than one gradient exists twice.
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
    """What an update holds and makes."""

    states: list[ModelStates]  # of each parameter
    peak: int  # bytes of what is made on the way, at the worst moment


def update_parameters(parameters: Sequence[Tensor], precision: Precision, optimizer: Optimizer) -> Update:
    """Two steps of an optimiser on parameters that have their gradients: the first makes its state.

    Runs within `measuring`.
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
            master.grad = gradient.to(MASTERS)  # which is the buffer itself where there is one
        optimizer.step()
        if master is not parameter:
            master.grad = None
            with torch.no_grad():
                parameter.copy_(master)


def _make(name: str, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """By the fused kernel where torch has one on the meta device; the other loops make nothing on the way either."""
    if name == "adamw":
        return torch.optim.AdamW(parameters, fused=True)
    # Muon's one momentum is SGD's; what orthogonalising it takes on the way is not measured.
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9 if name == "muon" else 0.0, foreach=False)


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()
