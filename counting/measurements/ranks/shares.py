"""The classes of ranks: torch gives the first ranks of a sharded dimension the longer parts, and the last ones less."""

from collections.abc import Iterator, Sequence
from math import prod

from torch import Tensor
from torch.distributed.tensor import DTensor

from counting.measurements.ranks.optimizer import PartShape, RankUpdates
from counting.measurements.ranks.stand_ins import local, shapes_along
from counting.ranks.profile import RankShare
from torch_models.layout import Layout

SHARDED = ("fsdp", "expert_fsdp")  # the dimensions of a mesh over which `fully_shard` divides


def rank_shares(
    parameters: Sequence[tuple[Tensor, int]], layout: Layout, updates: RankUpdates
) -> tuple[RankShare, ...]:
    """The classes of ranks with equal shares, in the order of their lowest rank.

    `parameters` are those of this rank, each with the number of equal ones in the whole model. The parts of other
    ranks are those of torch's rule for DTensors.
    """
    runs = [(list(_runs(parameter, layout)), times) for parameter, times in parameters if parameter.requires_grad]
    starts = sorted({first for parts, _ in runs for first, _ in parts})
    found: dict[tuple[int, int], tuple[int, int]] = {}  # parameters and moments -> first shard, number of shards
    for first, end in zip(starts, [*starts[1:], layout.shards], strict=True):
        shapes = [(_at(parts, first), times) for parts, times in runs]
        share = (
            sum(prod(shape) * times for shape, times in shapes),
            sum(updates.moments(shape) * times for shape, times in shapes),
        )
        lowest, number = found.get(share, (first, 0))
        found[share] = (lowest, number + end - first)
    return tuple(
        RankShare(
            count=number * layout.replicas * layout.tp,
            first_rank=lowest * layout.tp,
            parameters=numbers,
            moments=moments,
        )
        for (numbers, moments), (lowest, number) in found.items()
    )


def _runs(parameter: Tensor, layout: Layout) -> Iterator[tuple[int, PartShape]]:
    """The shapes of the parts of a parameter over the shards of `layout`, each with the first shard that has it.

    Shapes change at most twice on the way from the first shard to the last, so each change is found by bisection.
    """
    names = parameter.device_mesh.mesh_dim_names if isinstance(parameter, DTensor) else ()
    dimension = next((index for index, name in enumerate(names or ()) if name in SHARDED), None)
    if dimension is None:
        yield 0, tuple(local(parameter).shape)
        return
    assert isinstance(parameter, DTensor)
    mesh = parameter.device_mesh
    size, shape = mesh.size(dimension), shapes_along(parameter, dimension)
    neighbours = layout.shards // size  # ranks of ep, which hold other experts

    first, last = 0, shape(size - 1)
    while True:
        at_first = shape(first)
        yield first * neighbours, at_first
        if at_first == last:
            return
        below, above = first, size - 1  # equal to the first; not equal
        while above - below > 1:
            middle = (below + above) // 2
            if shape(middle) == at_first:
                below = middle
            else:
                above = middle
        first = above


def _at(parts: Sequence[tuple[int, PartShape]], shard: int) -> PartShape:
    return next(shape for first, shape in reversed(parts) if first <= shard)
