"""The optimiser's step on a rank: what it stores for the rank's part of each parameter, and what it allocates.

The update is run on local tensors. Torch runs the same ops on the local tensors of DTensors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from counting.measurements.optimizer import NOTHING, Trained, Update, update_together
from counting.measurements.ranks.stand_ins import local
from counting.recipes import ModelStates, Precision, TrainedTensor, find_precision
from counting.setup import Setup
from torch_models.layout import Layout

PartShape = tuple[int, ...]


def stored_precision(setup: Setup, layout: Layout) -> Precision:
    """The recipe that holds for what a rank stores.

    Under `fully_shard` mixed precision is a policy of gathering and reducing, and the shards are fp32; without it the
    recipe is that of one device.
    """
    recipe = setup.precision_recipe
    return find_precision("fp32") if layout.is_sharded and recipe.master_bytes else recipe


def adds_to_buffers(setup: Setup, layout: Layout) -> bool:
    """Whether each complete gradient is added to a buffer in another format, and freed.

    `fully_shard` reduces in that format instead.
    """
    return setup.precision_recipe.gradients_apart and not layout.is_sharded


class RankUpdates:
    """Updates of tensors on a rank, each shape measured once. Call its methods inside `measuring`."""

    def __init__(self, setup: Setup, layout: Layout, device: torch.device) -> None:
        self._precision = stored_precision(setup, layout)
        self._optimizer = setup.optimizer_recipe
        self._counters = layout.is_sharded
        self._dtype = getattr(torch, self._precision.activation_dtype)
        self._device = device
        self._known: dict[PartShape, Update] = {}

    def moments(self, shape: PartShape) -> int:
        """Bytes of the moments of a tensor of this shape; under `fully_shard` with its step counter."""
        update = self._of_one(shape)
        return update.states.moments + (update.counters if self._counters else 0)

    def states(self, parameters: Sequence[Tensor]) -> ModelStates:
        """The states of these parameters as stored, when backward is complete; of frozen ones the weights alone."""
        parts = [local(parameter) for parameter in parameters]
        trained = [local(parameter) for parameter in parameters if parameter.requires_grad]
        total = NOTHING
        for part in trained:
            states = self._of_one(tuple(part.shape)).states
            total += ModelStates(
                weights=0, gradients=0, masters=states.masters, moments=self.moments(tuple(part.shape))
            )
        gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        stored = sum(self._of_one(tuple(part.shape)).states.gradients for part in trained)
        return total + ModelStates(
            weights=stored_bytes(parts),
            # A gradient that is freed has been added to a buffer in another format.
            gradients=stored_bytes(gradients) if gradients else stored,
            masters=0,
            moments=0,
        )

    def peak(self, groups: Sequence[tuple[Sequence[Tensor], int]]) -> int:
        """The peak bytes of temporary tensors in the update of all parameters, of which there are `times` of each."""
        shapes = [
            ([tuple(local(p).shape) for p in parameters if p.requires_grad], times) for parameters, times in groups
        ]
        if self._optimizer.all_at_once:
            return sum(self._together(of_group).peak * times for of_group, times in shapes if of_group)
        return max(self._of_one(shape).peak for of_group, _ in shapes for shape in of_group)

    def trained(self, parameters: Sequence[Tensor]) -> list[Trained]:
        """Tensors like this rank's parts of these parameters, with gradients, as the optimiser finds them."""
        return [self._trained(tuple(local(parameter).shape)) for parameter in parameters if parameter.requires_grad]

    def _of_one(self, shape: PartShape) -> Update:
        if shape not in self._known:
            self._known[shape] = self._together([shape])
        return self._known[shape]

    def _together(self, shapes: Sequence[PartShape]) -> Update:
        return update_together([self._trained(shape) for shape in shapes], self._precision, self._optimizer)

    def _trained(self, shape: PartShape) -> Trained:
        weight = torch.zeros(shape, dtype=self._dtype, device=self._device)
        kind = torch.float32 if self._precision.gradients_apart else self._dtype
        return Trained(weight, torch.zeros(shape, dtype=kind, device=self._device), TrainedTensor(shape, "matrix"))


def updated_numbers(parameters: Sequence[Tensor]) -> int:
    """How many numbers of these parameters this rank updates."""
    return sum(local(parameter).numel() for parameter in parameters if parameter.requires_grad)


def stored_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of the distinct storages of `tensors`, padding included."""
    storages = {id(storage): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storages.values())
