"""What each rank stores: parameters, gradients, the optimiser's state; and the classes of ranks.

Weights and gradients are stored padded (sharding.py); the optimiser's moments are as large as the part that is updated.
AdamW has two moments and, in its fused form, a step count of 4 bytes for each tensor on the device.

Example: a norm of 4,096 numbers on 100 ranks, mixed precision: rank 0 stores 41 numbers in fp32, 164 bytes, as many
bytes of gradients, and 2 x 164 + 4 = 332 bytes of AdamW's state; rank 99 the same, but 2 x 4 x 37 + 4 = 300 bytes of
state.
"""

from collections.abc import Sequence
from typing import NamedTuple

from counting.formulas.layouts.clipping import Counted
from counting.formulas.layouts.formats import Stored
from counting.formulas.layouts.sharding import Shape, Sharding
from counting.ranks.profile import RankShare
from counting.recipes import ModelStates, Optimizer
from torch_models.layout import Layout

STEP_COUNT_BYTES = 4


class Tensor(NamedTuple):
    """A tensor on a rank, and how it is divided further; no gradient reaches a `frozen` one."""

    shape: Shape
    sharding: Sharding
    frozen: bool = False


class Update(NamedTuple):
    """What the optimiser reads and writes."""

    formats: Stored
    optimizer: Optimizer

    def moment_bytes(self, numbers: int) -> int:
        """Return the bytes of the optimiser's state of `numbers` numbers of one tensor."""
        counter = STEP_COUNT_BYTES if self.formats.counts_steps else 0
        moments = self.optimizer.moments_per_parameter
        assert moments is not None, "an optimiser that is measured on ranks"
        return moments * numbers * self.formats.moment + counter

    def states(self, tensors: Sequence[Tensor]) -> ModelStates:
        """Return what the first rank stores of these tensors."""
        stored = trained = updated = moments = 0
        for shape, sharding, frozen in tensors:
            stored += sharding.stored(shape)
            if frozen:
                continue
            trained += sharding.stored(shape)
            numbers = sharding.updated(shape)
            updated += numbers
            moments += self.moment_bytes(numbers)
        return ModelStates(
            weights=stored * self.formats.weight,
            gradients=trained * self.formats.gradient,
            masters=updated * self.formats.master,
            moments=moments,
        )

    def temporary_bytes(self, groups: Sequence[tuple[Sequence[Tensor], int]]) -> int:
        """Return the peak of the optimiser's temporary tensors; each group of tensors occurs a number of times.

        - a fused kernel, and SGD in a loop, allocate none;
        - AdamW over all tensors at once allocates the roots of all second moments (torch/optim/adamw.py,
          `_multi_tensor_adamw`);
        - with masters, gradients in another format are converted before: all of them, or one tensor's after the other.
        """
        formats = self.formats
        converted = formats.master if formats.master and formats.gradient != formats.master else 0
        if self.optimizer.all_at_once:
            return sum(updated_numbers(of) * times for of, times in groups) * (converted + formats.moment)
        if not converted:
            return 0
        largest = max(each.sharding.updated(each.shape) for of, _ in groups for each in of if not each.frozen)
        return largest * converted


def updated_numbers(tensors: Sequence[Tensor]) -> int:
    """Return how many numbers of these tensors the first rank updates."""
    return sum(each.sharding.updated(each.shape) for each in tensors if not each.frozen)


def counted_tensors(groups: Sequence[tuple[Sequence[Tensor], int]]) -> Counted:
    """Return how many tensors the first rank has, of groups that each occur a number of times."""
    found = Counted(0, 0)
    for tensors, times in groups:
        for each in tensors:
            if not each.frozen:
                found = found.plus(times, experts=each.sharding.scaled)
    return found


def rank_shares(
    groups: Sequence[tuple[Sequence[Tensor], int]], layout: Layout, update: Update
) -> tuple[RankShare, ...]:
    """Return the classes of ranks, in the order of their lowest rank; the groups are those of the whole model.

    A slice differs from the one before it only where some tensor has fewer rows. Neighbouring ranks of fsdp and cp have
    the same slice of experts, of which they have different ones.
    """
    starts = {0}
    trained = [([each for each in tensors if not each.frozen], times) for tensors, times in groups]
    for tensors, _ in trained:
        for shape, sharding, _frozen in tensors:
            starts |= {start * (layout.shards // sharding.shards) for start in sharding.starts(shape)}
    found: dict[tuple[int, int], tuple[int, int]] = {}  # parameters, moments -> first index, number of indices
    bounds = sorted(start for start in starts if start < layout.shards)
    for first, end in zip(bounds, [*bounds[1:], layout.shards], strict=True):
        parameters = moments = 0
        for tensors, times in trained:
            for shape, sharding, _frozen in tensors:
                numbers = sharding.updated(shape, first * sharding.shards // layout.shards)
                parameters += numbers * times
                moments += update.moment_bytes(numbers) * times
        lowest, number = found.get((parameters, moments), (first, 0))
        found[parameters, moments] = (lowest, number + end - first)
    return tuple(
        RankShare(
            count=number * layout.replicas * layout.tp,
            first_rank=first * layout.tp,
            parameters=parameters,
            moments=moments,
        )
        for (parameters, moments), (first, number) in found.items()
    )
