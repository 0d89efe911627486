"""What the analysis contains of a step that is spread over ranks: the ranks by class, each with its memory and traffic.

All numbers are those of one step, all micro-batches together. Torch-free.
"""

from collections.abc import Sequence
from typing import ClassVar

import msgspec
from msgspec import structs

from counting.ranks.memory import rank_memory, traffic_after_backward
from counting.ranks.pipeline import PipelineProfile
from counting.ranks.pipeline_memory import MAKES_GRADIENTS, pipeline_memory, pipeline_traffic
from counting.ranks.profile import (
    Axis,
    CollectiveOp,
    RankMicroBatch,
    RankPhase,
    RankProfile,
    RankShare,
    Traffic,
    Traffics,
    collective_of,
    total_traffic,
)
from counting.ranks.shallow import Shallow
from counting.records.tidy import Tidy
from counting.setup import Setup
from counting.step.memory import StepMemory
from torch_models.layout import Layout
from torch_models.stages import Stage


class RankCollective(msgspec.Struct, frozen=True, kw_only=True):
    """A collective that the ranks of a class call in a step; bytes are totals over `count` calls."""

    phase: RankPhase
    op: CollectiveOp
    axis: Axis
    count: int
    bytes_in: int
    bytes_out: int


class RankAnalysis(Tidy, frozen=True, kw_only=True):
    """Ranks that hold, compute and send the same; `first_rank` is the lowest of them."""

    count: int
    first_rank: int
    stage: int  # its place in the pipeline; 0 if there is none
    stages: tuple[int, ...]  # the numbers of the stages of the pipeline that it has
    in_flight: int  # passes forward that wait for their backward pass, at most, of all its stages
    context_rank: int  # the rank of cp with the largest peak, whose memory stands for all; 0 if there is none
    parameters: int  # numbers that each of them updates, without padding
    memory: StepMemory
    forward_flops: int  # by the convention: the full square of attention, also where causality skips blocks of it
    model_flops: int  # three forward passes, an indexer's once, of what this rank computes
    hardware_flops: int  # as executed
    skipped_by_causality: int  # of the model FLOPs, those of blocks for which no kernel is called, with cp
    forward_flops_by_component: dict[str, int]
    collectives: tuple[RankCollective, ...]
    proof: str


class RankTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over all ranks, which the undivided model must give too."""

    scope: ClassVar[str] = "all ranks"

    parameters: int  # numbers that the ranks update: each replica once, and what tp does not divide tp times
    forward_flops: int  # of one micro-batch on each rank


class Undivided(msgspec.Struct, frozen=True, kw_only=True):
    """How the sums over the ranks follow from the undivided model; `replicated_…` is what each rank of tp has."""

    parameters: int
    expert_parameters: int  # of `parameters`, those of routed experts, which ranks of ep divide
    copied_parameters: int  # the embedding that the last stage of a pipeline has again for multi-token prediction
    replicated_parameters: int
    forward_flops: int  # of one micro-batch
    replicated_forward_flops: int

    def over_ranks(self, layout: Layout) -> RankTotals:
        """The sums over all ranks: dp (P + C - E + (tp - 1) R) + e E parameters, dp fsdp (F + (tp - 1) R) FLOPs.

        E are those of the routed experts, of which there are e copies: fewer than dp where ep borrows ranks of dp. C
        are those that two stages have. The ranks of cp and pp divide parameters and FLOPs.
        """
        again = layout.tp - 1
        others = self.parameters + self.copied_parameters - self.expert_parameters + again * self.replicated_parameters
        return RankTotals(
            parameters=layout.replicas * others + layout.expert_replicas * self.expert_parameters,
            forward_flops=layout.data_ranks * (self.forward_flops + again * self.replicated_forward_flops),
        )


def worst_of_classes(classes: tuple[RankAnalysis, ...]) -> RankAnalysis:
    """The class that reserves most, or has the largest peak where that is not estimated; the first of several."""
    return max(classes, key=lambda each: (max(each.memory.reserved_bytes or (0,)), each.memory.peak_bytes))


def worst_by_place(classes: Sequence[RankAnalysis]) -> tuple[RankAnalysis, ...]:
    """For each rank of the pipeline in order, the class with the largest peak there; without a pipeline, of all."""
    by_place: dict[int, list[RankAnalysis]] = {}
    for each in classes:
        by_place.setdefault(each.stage, []).append(each)
    return tuple(worst_of_classes(tuple(by_place[place])) for place in sorted(by_place))


def totals_over_ranks(classes: tuple[RankAnalysis, ...], micro_batches: int) -> RankTotals:
    """The sums over the ranks of all classes."""
    return RankTotals(
        parameters=sum(each.count * each.parameters for each in classes),
        forward_flops=sum(each.count * each.forward_flops for each in classes) // micro_batches,
    )


def rank_classes(model: Shallow, setup: Setup, profile: RankProfile, proof: str) -> tuple[RankAnalysis, ...]:
    """The classes in the order of their lowest rank."""
    assert setup.micro_batches is not None, "a resolved setup"
    collectives = tuple(_collectives(step_traffic(model, profile, setup.micro_batches)))
    return tuple(
        _class_of(share, profile, rank_memory(model, setup, profile, share, proof), collectives, proof)
        for share in profile.shares
    )


def pipeline_classes(
    stages: tuple[Stage, ...], setup: Setup, profiles: Sequence[PipelineProfile], proof: str
) -> tuple[RankAnalysis, ...]:
    """The classes of the ranks of all places in the pipeline, in the order of their lowest rank.

    `stages` are those of the whole pipeline.
    """
    found = []
    for profile in profiles:
        collectives = tuple(_collectives(pipeline_traffic(stages, setup, profile)))
        for share in profile.shares:
            memory = pipeline_memory(stages, setup, profile, share, proof)
            found.append(
                structs.replace(
                    _class_of(share, profile, memory, collectives, proof),
                    stage=profile.pipeline_rank,
                    stages=tuple(stage.stage for stage in profile.stages),
                    in_flight=most_in_flight(profile),
                )
            )
    return tuple(sorted(found, key=lambda each: each.first_rank))


def _class_of(
    share: RankShare,
    profile: RankProfile | PipelineProfile,
    memory: StepMemory,
    collectives: tuple[RankCollective, ...],
    proof: str,
) -> RankAnalysis:
    """The ranks of `share`, as those of the only stage."""
    return RankAnalysis(
        count=share.count,
        first_rank=share.first_rank,
        stage=0,
        stages=(0,),
        in_flight=1,
        context_rank=profile.context_rank,
        parameters=share.parameters,
        memory=memory,
        forward_flops=profile.flops.full_forward.total,
        model_flops=profile.flops.model,
        hardware_flops=profile.flops.hardware,
        skipped_by_causality=profile.flops.skipped,
        forward_flops_by_component=profile.flops.full_forward.by_component(),
        collectives=collectives,
        proof=proof,
    )


def most_in_flight(profile: PipelineProfile) -> int:
    """The most forward passes that wait for their backward pass at once; half a backward pass does not end it."""
    most = now = 0
    for action in profile.actions:
        now += (action.kind == "forward") - (action.kind in MAKES_GRADIENTS)
        most = max(most, now)
    return most


def step_traffic(model: Shallow, profile: RankProfile, micro_batches: int) -> Traffics:
    """The traffic of a step of the deep model, over all micro-batches."""
    counts = model.counts()
    passes = [(_traffic(each, counts), number) for each, number in profile.micro_batches(micro_batches)]
    return total_traffic([*passes, *traffic_after_backward(profile)])


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
