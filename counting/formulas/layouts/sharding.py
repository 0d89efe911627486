"""Over which ranks fully_shard divides a group, and which slice of a tensor each of them has.

The slices are of the first dimension. Of s rows on n ranks, c = ceil(s / n) rows are stored on each rank, and rank i
updates min(c, s - i c) of them, at least none (`torch.chunk`; `_fsdp_param.py`, `_init_sharded_param`: shards are
padded, so that all ranks store equally many bytes). Experts of which there are fewer than ranks are sliced in the
second dimension, which must come out even.

Example: Llama-3-8B's down projection, 4096 x 14336, on 100 ranks: c = 41; a rank stores 41 x 14336 = 587,776 numbers;
gathered are 100 x 587,776 = 58,777,600 numbers, of which 58,720,256 are the matrix. Rank 99 updates 4,096 - 99 x 41 =
37 rows.
"""

from typing import NamedTuple

from counting.ranks.profile import Axis
from torch_models.layout import Layout

Shape = tuple[int, ...]


class Sharding(NamedTuple):
    """`shards` ranks have a slice each, `replicas` ranks the same slice; and the axes of the two.

    The sum of gradients is scaled by a factor of its own if it is `scaled`.
    """

    shards: int
    replicas: int
    shard_axis: Axis
    replica_axis: Axis
    second_dimension: bool = False
    scaled: bool = False

    def stored(self, shape: Shape) -> int:
        """Return how many numbers of a tensor each rank stores, padding included."""
        if self.second_dimension:
            return numbers(shape) // self.shards
        return -(-shape[0] // self.shards) * row_numbers(shape)

    def updated(self, shape: Shape, shard: int = 0) -> int:
        """Return how many numbers of a tensor the rank with this slice updates."""
        if self.second_dimension:
            return numbers(shape) // self.shards
        of_each = -(-shape[0] // self.shards)
        return min(of_each, max(shape[0] - shard * of_each, 0)) * row_numbers(shape)

    def starts(self, shape: Shape) -> set[int]:
        """Return the slices that have fewer numbers than the one before: the first short one, and the first empty."""
        if self.second_dimension:
            return set()
        of_each = -(-shape[0] // self.shards)
        return {shape[0] // of_each, -(-shape[0] // of_each)}


def row_numbers(shape: Shape) -> int:
    """Return how many numbers one row of the first dimension has."""
    found = 1
    for size in shape[1:]:
        found *= size
    return found


def numbers(shape: Shape) -> int:
    """Return how many numbers a tensor has."""
    return shape[0] * row_numbers(shape)


def data_sharding(layout: Layout) -> Sharding:
    """Return how all tensors are divided but experts on ranks of ep; ranks of cp are among the shards."""
    return Sharding(layout.shards, layout.replicas, "fsdp", "dp")


def expert_sharding(layout: Layout, num_experts: int) -> Sharding:
    """Return how a stack of experts is divided, of which the ranks of ep have some each.

    Ranks with the same experts are fewer than those with different data, whose mean the gradients are.
    """
    second = layout.expert_fsdp * layout.ep > num_experts
    return Sharding(layout.expert_fsdp, layout.expert_replicas, "expert_fsdp", "expert_dp", second, scaled=True)
