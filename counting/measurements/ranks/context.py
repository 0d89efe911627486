"""The ranks of cp differ by the kernels that they call: which of them differ, and the one with the largest peak."""

from collections.abc import Sequence

from msgspec import structs

from counting.ranks.memory import rank_memory
from counting.ranks.pipeline import PipelineProfile, StageProfile
from counting.ranks.pipeline_memory import pipeline_memory
from counting.ranks.profile import RankLayer, RankProfile
from counting.ranks.shallow import Shallow
from counting.setup import Setup
from torch_models.layout import Layout
from torch_models.stages import Stage


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
    return structs.replace(
        first,
        layers=_with_held(first.layers, worst.layers),
        first_micro_batch=worst.first_micro_batch,
        middle_micro_batch=worst.middle_micro_batch,
        last_micro_batch=worst.last_micro_batch,
        context_rank=worst.context_rank,
    )


def of_worst_in_pipeline(
    stages: tuple[Stage, ...], setup: Setup, profiles: Sequence[PipelineProfile]
) -> PipelineProfile:
    """The same for ranks of one place in a pipeline, which has these `stages`."""
    first = profiles[0]
    worst = max(profiles, key=lambda each: pipeline_memory(stages, setup, each, each.shares[0], "").peak_bytes)

    def with_passes(stored: StageProfile, ran: StageProfile) -> StageProfile:
        return structs.replace(stored, layers=_with_held(stored.layers, ran.layers), passes=ran.passes)

    return structs.replace(
        first,
        stages=tuple(with_passes(*both) for both in zip(first.stages, worst.stages, strict=True)),
        context_rank=worst.context_rank,
    )


def _with_held(stored: Sequence[RankLayer], ran: Sequence[RankLayer]) -> tuple[RankLayer, ...]:
    """`stored`, with what the layers of `ran` keep for backward."""
    return tuple(structs.replace(layer, held=other.held) for layer, other in zip(stored, ran, strict=True))
