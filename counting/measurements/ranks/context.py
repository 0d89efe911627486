"""The ranks of cp differ by the kernels that they call: which of them differ, and the one with the largest peak."""

from collections.abc import Sequence

from msgspec import structs

from counting.ranks.memory import rank_memory
from counting.ranks.profile import RankProfile
from counting.ranks.shallow import Shallow
from counting.setup import Setup
from torch_models.layout import Layout


def distinct_context_ranks(layout: Layout) -> tuple[int, ...]:
    """The lowest of each kind of ranks of cp: the first, those between, which are alike, and the last.

    The first rank calls kernels for half of its queries alone, the last for half of the keys alone, after its own
    block; the others call both kinds. All compute and send the same.
    """
    return tuple(sorted({0, min(1, layout.cp - 1), layout.cp - 1}))


def of_worst(model: Shallow, setup: Setup, profiles: Sequence[RankProfile]) -> RankProfile:
    """The first of `profiles`, with the bytes of a step of the one that has the largest peak; the first of several.

    What a rank stores does not depend on its place in cp, but on its shard of fully_shard, which is that of the first.
    """
    first = profiles[0]
    worst = max(profiles, key=lambda each: rank_memory(model, setup, each, each.shares[0], "").peak_bytes)
    layers = zip(first.layers, worst.layers, strict=True)
    return structs.replace(
        first,
        layers=tuple(structs.replace(stored, held=ran.held) for stored, ran in layers),
        first_micro_batch=worst.first_micro_batch,
        middle_micro_batch=worst.middle_micro_batch,
        last_micro_batch=worst.last_micro_batch,
        context_rank=worst.context_rank,
    )
