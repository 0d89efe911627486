"""What the analysis contains of a step that is spread over ranks: the ranks by class, each with its memory and traffic.

All numbers are those of one step, all micro-batches together. Torch-free.
"""

import msgspec

from counting.ranks.memory import rank_memory
from counting.ranks.profile import (
    Axis,
    CollectiveOp,
    RankMicroBatch,
    RankPhase,
    RankProfile,
    Traffic,
    Traffics,
    collective_of,
    total_traffic,
)
from counting.ranks.shallow import Shallow
from counting.setup import Setup
from counting.step.memory import StepMemory


class RankCollective(msgspec.Struct, frozen=True, kw_only=True):
    """A collective that the ranks of a class call in a step; bytes are totals over `count` calls."""

    phase: RankPhase
    op: CollectiveOp
    axis: Axis
    count: int
    bytes_in: int
    bytes_out: int


class RankAnalysis(msgspec.Struct, frozen=True, kw_only=True):
    """Ranks that hold, compute and send the same; `first_rank` is the lowest of them."""

    count: int
    first_rank: int
    stage: int  # of the pipeline; always 0
    parameters: int  # numbers that each of them updates, without padding
    memory: StepMemory
    forward_flops: int
    model_flops: int  # three forward passes, of what this rank computes
    hardware_flops: int
    forward_flops_by_component: dict[str, int]
    collectives: tuple[RankCollective, ...]
    proof: str


def rank_classes(model: Shallow, setup: Setup, profile: RankProfile, proof: str) -> tuple[RankAnalysis, ...]:
    """The classes in the order of their lowest rank."""
    assert setup.micro_batches is not None, "a resolved setup"
    collectives = tuple(_collectives(step_traffic(model, profile, setup.micro_batches)))
    return tuple(
        RankAnalysis(
            count=share.count,
            first_rank=share.first_rank,
            stage=0,
            parameters=share.parameters,
            memory=rank_memory(model, setup, profile, share, proof),
            forward_flops=profile.flops.forward.total,
            model_flops=profile.flops.model,
            hardware_flops=profile.flops.hardware,
            forward_flops_by_component=profile.flops.forward.by_component(),
            collectives=collectives,
            proof=proof,
        )
        for share in profile.shares
    )


def step_traffic(model: Shallow, profile: RankProfile, micro_batches: int) -> Traffics:
    """The traffic of a step of the deep model, over all micro-batches."""
    counts = model.counts()
    passes = [(_traffic(each, counts), number) for each, number in profile.micro_batches(micro_batches)]
    return total_traffic([*passes, (profile.optimizer_step.traffic, 1)])


def _traffic(micro_batch: RankMicroBatch, counts: tuple[int, ...]) -> Traffics:
    return total_traffic(
        (stretch.traffic, 1 if layer is None else counts[layer]) for stretch, layer in micro_batch.phases()
    )


_ORDER = ("forward", "backward", "optimizer")


def _collectives(traffics: Traffics) -> list[RankCollective]:
    def make(key: str, traffic: Traffic) -> RankCollective:
        phase, operation, axis = collective_of(key)
        return RankCollective(
            phase=phase,
            op=operation,
            axis=axis,
            count=traffic.calls,
            bytes_in=traffic.bytes_in,
            bytes_out=traffic.bytes_out,
        )

    found = [make(key, traffic) for key, traffic in traffics.items() if traffic.calls]
    return sorted(found, key=lambda each: (_ORDER.index(each.phase), each.axis, each.op))
