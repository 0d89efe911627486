"""The memory of a rank over the whole model: the worst moment of each phase, from the profile of the shallow model."""

from collections.abc import Iterator

from counting.ranks.profile import RankMicroBatch, RankProfile, RankShare
from counting.ranks.shallow import Shallow
from counting.recipes import ModelStates
from counting.setup import Setup
from counting.step.memory import UPDATE, StepMemory
from counting.step.phase import Outside, Position, RunOfLayers, pass_micro_batch, worst_of

RANK_NOTES = (
    "Beside the phases of one device, a rank has parameters that are gathered for a layer and freed after it, and the "
    "buffers of collectives. Shards are stored padded, so that all ranks of fully_shard store the same bytes. Without "
    "ep it divides experts by their first dimension: with more ranks than experts it stores and gathers padding.",
    "Not counted: what the communication library and the CUDA context occupy, workspaces in kernels, and the "
    "allocator's rounding and gaps.",
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
        position.pass_through(profile.optimizer_step.memory, UPDATE),
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
        notes=RANK_NOTES,
    )


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
