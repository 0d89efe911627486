"""What a rank's storages are: gradients, gathered parameters, buffers of communication; and the stretches by these."""

from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor, nn

from counting.measurements.ranks.live_bytes import RankBytes
from counting.measurements.ranks.stand_ins import accumulated_gradients, gathered_parameters
from counting.ranks.profile import RankStretch, Traffics
from counting.step.profile import Alive, Cut, Stretch


class Categories(NamedTuple):
    """The serial numbers of the storages of each category; a storage keeps its category from its birth to its end.

    A reduced gradient is one from the moment when the collective has a place for it, unless it is added to another.
    What tensor and expert parallelism send are activations and their gradients, which are in no category.
    """

    gradients: Collection[int]  # of whole parameters until they are reduced, and those that the optimiser reads
    gathered: Collection[int]
    communication: Collection[int]  # what else `fully_shard` makes to gather and to reduce


class CategoryMarks:
    """Context in which the category of each storage is found while a model trains under a layout.

    With `let_go`, each gradient is freed when it is complete, as by a recipe that adds it to a buffer of another
    format; then it is no gradient here, as on one device.
    """

    def __init__(self, model: nn.Module, tracker: RankBytes, *, let_go: bool) -> None:
        self._model, self._tracker, self._let_go = model, tracker, let_go
        self._gradients: set[int] = set()
        self._gathered: set[int] = set()
        self._whole: list[Tensor] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> "CategoryMarks":
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def after_first_forward(self) -> None:
        """Note the gathered parameters, and from now on each whole gradient when it is complete."""
        gathered = gathered_parameters(self._model)
        self._gathered = {self._tracker.serial(parameter) for parameter in gathered}
        # Those that are not gathered get their gradients from autograd themselves.
        self._whole = [each for each in gathered or self._model.parameters() if each.requires_grad]
        for parameter in self._whole:
            self._hooks.append(parameter.register_post_accumulate_grad_hook(self._note_gradient))

    def after_micro_batch(self) -> None:
        """Note the gradients that are kept whole until a later micro-batch."""
        self._gradients |= {self._tracker.serial(gradient) for gradient in accumulated_gradients(self._model)}

    def after_pass(self) -> None:
        """Note all gradients that are there after a pass of a stage, with hooks or without."""
        if self._hooks:
            tensors = [*self._whole, *self._model.parameters()]
            present = [tensor.grad for tensor in tensors if tensor.grad is not None]
            self._gradients |= {self._tracker.serial(gradient) for gradient in present}
        self.after_micro_batch()

    def found(self) -> Categories:
        """The categories, at the end of the step."""
        last = {self._tracker.serial(p.grad) for p in self._model.parameters() if p.grad is not None}
        gradients = self._gradients | last
        return Categories(
            gradients=gradients,
            gathered=self._gathered - gradients,
            communication=self._tracker.made_by_fully_shard - gradients - self._gathered,
        )

    def _note_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        if self._let_go:
            parameter.grad = None
        else:
            self._gradients.add(self._tracker.serial(parameter.grad))


class RankCut(NamedTuple):
    """A moment between two stretches, and the traffic since the last one."""

    cut: Cut
    traffic: Traffics


def rank_stretches(cuts: Sequence[RankCut], categories: Categories) -> list[RankStretch]:
    """The stretch from each cut to the next."""
    return [
        RankStretch(memory=_stretch(before.cut.now, after.cut, categories), traffic=after.traffic)
        for before, after in pairwise(cuts)
    ]


def _stretch(before: Alive, after: Cut, categories: Categories) -> Stretch:
    def change(now: Alive, category: Iterable[int]) -> int:
        return sum(now.get(serial, 0) - before.get(serial, 0) for serial in category)

    start = sum(before.values())
    in_a_category = {*categories.gradients, *categories.gathered, *categories.communication}
    return Stretch(
        peak=sum(after.at_peak.values()) - start,
        net=sum(after.now.values()) - start,
        gradients=change(after.now, categories.gradients),
        peak_gradients=change(after.at_peak, categories.gradients),
        peak_released=sum(
            max(size - after.at_peak.get(serial, 0), 0)
            for serial, size in before.items()
            if serial not in in_a_category
        ),
        gathered=change(after.now, categories.gathered),
        peak_gathered=change(after.at_peak, categories.gathered),
        communication=change(after.now, categories.communication),
        peak_communication=change(after.at_peak, categories.communication),
    )
