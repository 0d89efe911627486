"""The memory of a rank over the whole model: the worst moment of each phase, from the profile of the shallow model.

Also what follows the backward pass, with a pipeline and without.
"""

from collections.abc import Iterator

from counting.ranks.pipeline import PipelineProfile
from counting.ranks.profile import RankMicroBatch, RankProfile, RankShare, Traffics
from counting.ranks.shallow import Shallow
from counting.recipes import ModelStates
from counting.setup import Setup
from counting.step.memory import CLIPPING, UPDATE, StepMemory
from counting.step.phase import Outside, Phase, Position, RunOfLayers, pass_micro_batch, worst_of

RANK_NOTES = (
    "Beside the phases of one device, a rank has parameters that are gathered for a layer and freed after it, and the "
    "buffers of collectives. Shards are stored padded, so that all ranks of fully_shard store the same bytes. Without "
    "ep it divides experts by their first dimension: with more ranks than experts it stores and gathers padding.",
    "Not counted: what the communication library and the CUDA context occupy, workspaces in kernels, and the "
    "allocator's rounding and gaps.",
)

CLIPPING_ON_RANKS_NOTE = (
    "Gradients are clipped by torch's clip_grad_norm_ on the parts that a rank stores: a norm for each tensor, and a "
    "copy of all of them before and after each of the sums over ranks; gradients are scaled in place."
)


def rank_states(profile: RankProfile, share: RankShare) -> ModelStates:
    """The model states that each rank of `share` stores; its gradients are those when backward is complete."""
    states = profile.outside_states
    for layer in profile.layers:
        states += layer.states * layer.count
    return ModelStates(
        weights=states.weights, gradients=states.gradients, masters=states.masters, moments=share.moments
    )


def rank_memory(model: Shallow, setup: Setup, profile: RankProfile, share: RankShare, proof: str) -> StepMemory:
    """`profile`, of the shallow model, extended to the layers of the deep one, for the ranks of `share`."""
    states = rank_states(profile, share)
    # Where fully_shard is not applied the recipe is that of one device, with masters; its gradients may have buffers.
    stay = states.masters > 0 and setup.precision_recipe.gradients_apart
    position = Position(states, buffers=profile.buffers, inputs=profile.inputs, gradients_stay=stay)
    assert setup.micro_batches is not None, "a resolved setup"
    of_passes, first = [], 0
    for micro_batch, count in profile.micro_batches(setup.micro_batches):
        outside = Outside(
            micro_batch.embedding_forward.memory, micro_batch.loss.memory, micro_batch.embedding_backward.memory
        )
        runs = list(_runs(model, profile, micro_batch))
        of_passes.append(pass_micro_batch(position, first, outside, runs, mtp=bool(setup.mtp)))
        # With replicas, fully_shard keeps a buffer of every layer until backward ends; the shallow model has fewer.
        position.communication = 0
        first += count
    phases = (
        *(worst_of(alike) for alike in zip(*(phases for phases, _ in of_passes), strict=True)),
        *after_backward(position, profile),
    )
    worst = worst_of(phases)
    return StepMemory(
        states=states,
        buffers=profile.buffers,
        phases=phases,
        layer_backward_peak_bytes=tuple(map(max, zip(*(peaks for _, peaks in of_passes), strict=True))),
        peak_phase=worst.name,
        peak_bytes=worst.peak_bytes,
        proof=proof,
        notes=rank_notes(setup),
    )


def after_backward(position: Position, profile: RankProfile | PipelineProfile) -> Iterator[Phase]:
    """The worst moments of clipping, if gradients are clipped, and of the update."""
    if profile.gradient_clipping is not None:
        yield position.pass_through(profile.gradient_clipping.memory, CLIPPING)
    yield position.pass_through(profile.optimizer_step.memory, UPDATE)


def traffic_after_backward(profile: RankProfile | PipelineProfile) -> list[tuple[Traffics, int]]:
    """What clipping and the update send, each once in a step."""
    clipping = [] if profile.gradient_clipping is None else [(profile.gradient_clipping.traffic, 1)]
    return [*clipping, (profile.optimizer_step.traffic, 1)]


def rank_notes(setup: Setup) -> tuple[str, ...]:
    """What is assumed of a rank's memory."""
    return (*RANK_NOTES, CLIPPING_ON_RANKS_NOTE) if setup.clip_gradients else RANK_NOTES


def _runs(model: Shallow, profile: RankProfile, micro_batch: RankMicroBatch) -> Iterator[RunOfLayers]:
    first = 0
    for index, count in model.runs:
        yield RunOfLayers(
            profile.layers[index].kind,
            micro_batch.forward[index].memory,
            micro_batch.backward[index].memory,
            range(first, first + count),
        )
        first += count
