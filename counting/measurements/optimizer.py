"""Measured memory after backward: gradient clipping, and torch's optimisers on meta tensors like the parameters.

With master weights the gradients of the parameters that are updated together are converted to the masters' format, an
optimiser makes its step, and the new weights are written back.
"""

import contextlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from counting.measurements.live_bytes import LiveBytes
from counting.measurements.meta_device import ScalarsAsOne
from counting.recipes import ModelStates, Optimizer, Precision, TrainedTensor

if TYPE_CHECKING:
    from counting.measurements.work.recorder import Recorder

MASTERS = torch.float32
NOTHING = ModelStates(weights=0, gradients=0, masters=0, moments=0)


class Trained(NamedTuple):
    """A parameter with its gradient, and what it is to an optimiser."""

    parameter: Tensor
    gradient: Tensor
    tensor: TrainedTensor


class Update(NamedTuple):
    """The model states of an update, the peak bytes of its temporary tensors, and the bytes of its step counters.

    Counters that the optimiser keeps on the host are left out.
    """

    states: ModelStates
    peak: int
    counters: int


class _Updated(NamedTuple):
    """A tensor that an optimiser updates: a parameter, a master copy of it, or a view of one expert's matrix."""

    weight: Tensor
    gradient: Tensor
    master: Tensor  # the weight itself without master weights
    role: str
    times: int  # the number of such views


def with_gradients(
    parameters: Sequence[Tensor], tensors: Sequence[TrainedTensor], precision: Precision
) -> list[Trained]:
    """Each parameter with the gradient that is there after backward, or the buffer that the recipe adds it to."""
    found = []
    for parameter, tensor in zip(parameters, tensors, strict=True):
        gradient = torch.empty_like(parameter, dtype=MASTERS) if precision.gradients_apart else parameter.grad
        assert gradient is not None
        assert gradient.shape == tensor.shape
        found.append(Trained(parameter, gradient, tensor))
    return found


def clip(gradients: Iterable[Tensor]) -> int:
    """Scale gradients to a total norm of 1; return the peak bytes of temporary tensors. Call it inside `measuring`."""
    leaves = []
    for gradient in gradients:
        leaf = gradient.detach()
        leaf.grad = gradient
        leaves.append(leaf)
    with LiveBytes(leaves) as tracker:
        before = tracker.live
        tracker.watch()
        scale(leaves)
    peak: int = tracker.peak - before
    return peak


def scale(leaves: Iterable[Tensor]) -> None:
    """Scale the gradients of `leaves` to a total norm of 1."""
    torch.nn.utils.clip_grad_norm_(leaves, 1.0, foreach=True)


def update_together(
    trained: Sequence[Trained], precision: Precision, optimizer: Optimizer, recorder: "Recorder | None" = None
) -> Update:
    """Two steps of an optimiser over these parameters: the first creates its moments, the second is measured.

    The moments of an optimiser that torch lacks are 0. A `recorder` has the second step as a stretch afterwards. Call
    it inside `measuring`.
    """
    updated = [_updated(each, precision, optimizer) for each in trained]
    made = _optimizers(updated, optimizer)
    _step(updated, made)
    of_master = {id(master): state for each in made for master, state in each.state.items()}
    states = NOTHING
    for each in updated:
        own = [x for name, x in of_master.get(id(each.master), {}).items() if name != "step"]
        of_one = ModelStates(
            weights=each.weight.nbytes,
            gradients=each.gradient.nbytes,
            masters=0 if each.master is each.weight else each.master.nbytes,
            moments=sum(x.untyped_storage().nbytes() for x in own),
        )
        states += of_one * each.times
    existing = [x for each in updated for x in (each.weight, each.gradient, each.master)]
    existing += [x for state in of_master.values() for x in state.values()]
    with (
        LiveBytes(existing, recorder) as tracker,
        contextlib.nullcontext() if recorder is None else recorder.of(tracker),
    ):
        before = tracker.live
        tracker.watch()
        _step(updated, made)
        if recorder is not None:
            recorder.cut()
    counters = [state["step"] for state in of_master.values() if "step" in state]
    on_device = sum(step.nbytes for step in counters if step.device == trained[0].parameter.device)
    return Update(states, tracker.peak - before, on_device)


class WholeUpdate:
    """An optimiser over all parameters of a model, which makes steps as `update_together` does for a few.

    Masters, and buffers for gradients of another format, are made at once; moments in the first step. Where each matrix
    of a stack is updated apart, one is updated, and the others have their masters and moments. Call it inside
    `measuring`.
    """

    def __init__(
        self, weights: Sequence[Tensor], tensors: Sequence[TrainedTensor], precision: Precision, optimizer: Optimizer
    ) -> None:
        weights = [weight.detach() for weight in weights]
        self.gradients = (
            [torch.empty_like(weight, dtype=MASTERS) for weight in weights] if precision.gradients_apart else None
        )
        trained = [Trained(weight, weight, tensor) for weight, tensor in zip(weights, tensors, strict=True)]
        self._updated = [_updated(each, precision, optimizer) for each in trained]
        self._others = [each.master for each in self._updated for _ in range(1, each.times)]
        self._of_others = [torch.empty_like(master) for master in self._others] if precision.master_bytes else []
        every = range(len(self._updated))
        together = [list(every)] if optimizer.all_at_once or not precision.master_bytes else [[i] for i in every]
        self._groups = [(group, _optimizers([self._updated[i] for i in group], optimizer)) for group in together]
        self._made_steps = False

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Update all parameters; `gradients` are those of each, unless there are buffers."""
        if not self._made_steps:
            self._of_others += [torch.empty_like(master) for master in self._others]
            self._made_steps = True
        gradients = self.gradients or gradients
        for group, optimizers in self._groups:
            _step([self._with_gradient(self._updated[i], gradients[i]) for i in group], optimizers)

    def _with_gradient(self, updated: _Updated, gradient: Tensor) -> _Updated:
        return updated._replace(gradient=gradient[0] if gradient.dim() > updated.weight.dim() else gradient)


def _updated(trained: Trained, precision: Precision, optimizer: Optimizer) -> _Updated:
    """What the optimiser updates. Muon updates each expert's matrix apart; one of them stands for all."""
    weight, gradient, tensor = trained.parameter.detach(), trained.gradient, trained.tensor
    if _is_apart(tensor, optimizer):
        weight, gradient = weight[0], gradient[0]
    master = weight.to(MASTERS) if precision.master_bytes else weight
    return _Updated(weight, gradient, master, tensor.role, matrices_apart(tensor, optimizer))


def matrices_apart(tensor: TrainedTensor, optimizer: Optimizer) -> int:
    """How many updates of its own a tensor has: one, or one for each of the experts' matrices."""
    return tensor.shape[0] if _is_apart(tensor, optimizer) else 1


def _is_apart(tensor: TrainedTensor, optimizer: Optimizer) -> bool:
    return optimizer.name == "muon" and tensor.stacked and tensor.role == "matrix"


def _step(updated: Sequence[_Updated], optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Convert the gradients, update the masters, and write the weights back."""
    for each in updated:
        each.master.grad = each.gradient.to(each.master.dtype)  # no copy if it has this dtype
    with ScalarsAsOne():
        for optimizer in optimizers:
            optimizer.step()
    for each in updated:
        each.master.grad = None
        if each.master is not each.weight:
            each.weight.copy_(each.master)


def _optimizers(updated: Sequence[_Updated], optimizer: Optimizer) -> list[torch.optim.Optimizer]:
    """The optimisers that update these tensors; none if torch has no such optimiser."""
    masters = [each.master for each in updated]
    if optimizer.name == "muon":
        matrices = [each.master for each in updated if each.role == "matrix"]
        others = [each.master for each in updated if each.role != "matrix"]
        return [
            *([torch.optim.Muon(matrices)] if matrices else []),
            *([torch.optim.AdamW(others, fused=True)] if others else []),
        ]
    match optimizer.name:
        case "adamw":
            return [torch.optim.AdamW(masters, fused=True)]
        case "adamw-foreach":
            return [torch.optim.AdamW(masters, foreach=True)]
        case "adafactor":
            return [torch.optim.Adafactor(masters)]
        case "sgd":
            return [torch.optim.SGD(masters, foreach=False)]
        case "sgd-momentum":
            return [torch.optim.SGD(masters, momentum=0.9, foreach=False)]
    assert not optimizer.measurable, f"no optimiser of torch for {optimizer.name}"
    return []
