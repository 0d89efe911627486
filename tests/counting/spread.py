"""Analyses with ranks that are made by hand, so that reports can be tested without measuring any."""

import msgspec

from counting.analysis import Analysis
from counting.ranks.result import RankAnalysis, RankCollective, Undivided
from counting.recipes import ModelStates
from counting.step.memory import Alternative, StepMemory
from counting.step.phase import Phase
from torch_models.layout import Layout

PHASES = ("forward", "head and loss", "backward of a layer", "backward of the embedding", "optimiser step")
EVERY_RANK = ModelStates(weights=5 * 10**8, gradients=5 * 10**8, masters=0, moments=10**9)

COLLECTIVES = (
    RankCollective(phase="forward", op="all_gather", axis="fsdp", count=34, bytes_in=25 * 10**7, bytes_out=16 * 10**9),
    RankCollective(phase="backward", op="all_gather", axis="fsdp", count=31, bytes_in=21 * 10**7, bytes_out=14 * 10**9),
    RankCollective(
        phase="backward", op="reduce_scatter", axis="fsdp", count=34, bytes_in=32 * 10**9, bytes_out=5 * 10**8
    ),
)


def phase(name: str, activations: int, *, layer: int | None = None, logits: bool = False) -> Phase:
    """A phase in which everything but the activations is the same, in bytes."""
    return Phase(
        name=name,
        micro_batch=None if name == "optimiser step" else 0,
        layer=layer,
        layer_kind=None if layer is None else "dense",
        parameters=EVERY_RANK.weights,
        gradients=10**8,
        optimizer_state=EVERY_RANK.moments,
        activations=activations,
        gathered_parameters=9 * 10**8,
        communication_buffers=3 * 10**8,
        logits_and_loss=2 * 10**9 if logits else 0,
        transients=0 if logits else 4 * 10**9,
    )


def rank_class(
    activations: int,
    *,
    count: int,
    first_rank: int = 0,
    alternatives: tuple[Alternative, ...] = (),
    stage: int = 0,
    stages: tuple[int, ...] = (0,),
    in_flight: int = 1,
) -> RankAnalysis:
    """Equal ranks whose worst moment is in the backward pass of layer 31, with these bytes of activations."""
    phases = tuple(
        phase(
            name,
            activations - 10**9 * abs(index - 2),
            layer=31 if name in ("forward", "backward of a layer") else None,
            logits=name == "head and loss",
        )
        for index, name in enumerate(PHASES)
    )
    return RankAnalysis(
        count=count,
        first_rank=first_rank,
        stage=stage,
        stages=stages,
        in_flight=in_flight,
        context_rank=0,
        parameters=125_472_832,
        memory=StepMemory(
            states=EVERY_RANK,
            buffers=0,
            phases=phases,
            layer_backward_peak_bytes=(10**9, 3 * 10**9),
            peak_phase="backward of a layer",
            peak_bytes=phases[2].peak_bytes,
            proof="measured = formula",
            notes=("Shards are stored padded.",),
            alternatives=alternatives,
        ),
        forward_flops=130 * 10**12,
        model_flops=390 * 10**12,
        hardware_flops=400 * 10**12,
        skipped_by_causality=0,
        forward_flops_by_component={"attention": 50 * 10**12, "mlp": 72 * 10**12, "lm_head": 8 * 10**12},
        collectives=COLLECTIVES,
        proof="measured = formula",
    )


def pipeline(layout: Layout, *activations: int, count: int = 1) -> tuple[RankAnalysis, ...]:
    """A class of `count` equal ranks for each rank of the pipeline of a resolved layout."""
    return tuple(
        rank_class(
            of_rank,
            count=count,
            first_rank=rank * count,
            stage=rank,
            stages=layout.stages_of_rank(rank),
            in_flight=layout.pp - rank,
        )
        for rank, of_rank in enumerate(activations)
    )


def spread(analysis: Analysis, layout: Layout, *classes: RankAnalysis) -> Analysis:
    """The analysis of a step on one device as one that is spread over ranks; `layout` is resolved."""
    whole = analysis.parameters.total
    undivided = Undivided(
        parameters=whole,
        expert_parameters=0,
        copied_parameters=0,
        replicated_parameters=266_240,
        forward_flops=analysis.forward_flops,
        replicated_forward_flops=0,
    )
    return msgspec.structs.replace(analysis, layout=layout, rank_classes=classes, undivided=undivided)
