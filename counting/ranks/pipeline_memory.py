"""The memory of a rank of a pipeline: the worst moment of each phase, over the actions of its schedule. Torch-free."""

from collections import defaultdict
from collections.abc import Iterator

from counting.ranks.memory import after_backward, rank_notes, traffic_after_backward
from counting.ranks.pipeline import (
    PassKind,
    PipelineAction,
    PipelineProfile,
    StagePass,
    StageProfile,
)
from counting.ranks.profile import RankShare, RankStretch, Traffics, total_traffic
from counting.ranks.shallow import Shallow, shallow
from counting.recipes import ModelStates
from counting.setup import Setup
from counting.step.memory import CLIPPING, UPDATE, StepMemory
from counting.step.phase import Phase, Position, worst_of
from torch_models.stages import Stage

REDUCTION, GATHERING = "gradient reduction", "gathering of parameters"
PIPELINE_NOTES = (
    "Buffers of communication include what passes between stages: buffers to receive into, which torch has for every "
    "micro-batch of the step, outputs that are kept until their backward pass, and gradients until they are sent.",
)
MAKES_GRADIENTS = ("backward", "weight_backward")
PASSES_OF_BATCHES = ("forward", "backward", "input_backward", "weight_backward")


def pipeline_states(profile: PipelineProfile, share: RankShare) -> ModelStates:
    """The model states that each rank of `share` stores, of all its stages."""
    states = sum(
        (_states(stage) for stage in profile.stages), ModelStates(weights=0, gradients=0, masters=0, moments=0)
    )
    return ModelStates(
        weights=states.weights, gradients=states.gradients, masters=states.masters, moments=share.moments
    )


def _states(stage: StageProfile) -> ModelStates:
    states = stage.outside_states
    for layer in stage.layers:
        states += layer.states * layer.count
    return states


def pipeline_memory(
    stages: tuple[Stage, ...], setup: Setup, profile: PipelineProfile, share: RankShare, proof: str
) -> StepMemory:
    """`profile` extended to all layers of its stages, and to all micro-batches, for the ranks of `share`.

    `stages` are those of the whole pipeline.
    """
    assert setup.micro_batches is not None, "a resolved setup"
    states = pipeline_states(profile, share)
    stay = states.masters > 0 and setup.precision_recipe.gradients_apart
    buffers = sum(stage.buffers for stage in profile.stages)
    position = Position(states, buffers=buffers, inputs=profile.inputs, gradients_stay=stay)
    further = setup.micro_batches - profile.micro_batches_run
    position.activations += further * profile.further_inputs
    moments: dict[str, list[Phase]] = defaultdict(list)
    layer_peaks: dict[int, int] = defaultdict(int)
    messages = 0
    for action, stage, one_pass in actions_with_passes(profile):
        position.communication += action.messages + further * action.further - messages
        messages = action.messages + further * action.further
        position.micro_batch = action.micro_batch
        for phase in _phases(position, stages[stage.stage], action, one_pass, mtp=bool(setup.mtp)):
            moments[phase.name].append(phase)
            if phase.layer is not None and phase.name == BACKWARD:
                layer_peaks[phase.layer] = max(layer_peaks[phase.layer], phase.peak_bytes)
        if action.kind == "weight_backward":
            position.activations -= freed_with_the_last_layer(stage, one_pass)
    position.micro_batch = None
    position.communication += profile.messages_after + further * profile.further_after - messages
    for phase in after_backward(position, profile):
        moments[phase.name].append(phase)
    phases = tuple(worst_of(moments[name]) for name in ORDER if name in moments)
    worst = worst_of(phases)
    return StepMemory(
        states=states,
        buffers=buffers,
        phases=phases,
        layer_backward_peak_bytes=tuple(layer_peaks[layer] for layer in sorted(layer_peaks)),
        peak_phase=worst.name,
        peak_bytes=worst.peak_bytes,
        proof=proof,
        notes=(*rank_notes(setup), *PIPELINE_NOTES),
    )


FORWARD, LOSS, LOSS_MTP = "forward", "head and loss", "head, loss and MTP"
BACKWARD, EMBEDDING = "backward of a layer", "backward of the embedding"
ORDER = (GATHERING, FORWARD, LOSS, LOSS_MTP, BACKWARD, EMBEDDING, REDUCTION, CLIPPING, UPDATE)


def actions_with_passes(profile: PipelineProfile) -> Iterator[tuple[PipelineAction, StageProfile, StagePass]]:
    """Each action in order, with its stage and what its pass does."""
    of_number = {stage.stage: stage for stage in profile.stages}
    for action in profile.actions:
        stage = of_number[action.stage]
        assert stage.passes is not None, "passes that were measured"
        yield action, stage, stage.passes[action.key]


def freed_with_the_last_layer(stage: StageProfile, weights: StagePass) -> int:
    """Bytes that layers beyond those of the shallow stage keep until the second half of backward ends.

    Some of what a layer keeps is freed with the operations of the layers that follow it, when the last of them is
    freed (see `counting.formulas.memory.stages`). In the profile the last layer frees it for the others, each once. It
    is what forward and both halves of backward leave of a layer, without gradients.
    """
    assert stage.passes is not None, "passes that were measured"
    forward, inputs = (
        next(each for key, each in stage.passes.items() if key.split()[0] == kind)
        for kind in ("forward", "input_backward")
    )
    found = 0
    for layer, *passes in zip(stage.layers, forward.layers, inputs.layers, weights.layers, strict=True):
        if layer.count > 1:
            found += sum(map(_of_activations, passes)) * (layer.count - 1)
    return found


def _of_activations(stretch: RankStretch) -> int:
    memory = stretch.memory
    return memory.net - memory.gradients - memory.gathered - memory.communication


def _phases(
    position: Position, stage: Stage, action: PipelineAction, one_pass: StagePass, *, mtp: bool
) -> Iterator[Phase]:
    """The worst moments of one pass in order; of equal layers those of the first and the last."""
    of_loss, model = LOSS_MTP if mtp else LOSS, shallow(stage.spec)
    names = _names(action.kind, stage)
    if stage.is_last and action.kind in PASSES_OF_BATCHES:
        names = (names[0], names[1], of_loss)
    if not one_pass.ascending:
        names = names[::-1]
    yield position.pass_through(one_pass.before.memory, names[0], logits=names[0] == of_loss)
    for index, layers in _runs(model, stage.first_layer, backwards=not one_pass.ascending):
        memory, kind = one_pass.layers[index].memory, model.spec.layers[index].kind
        yield from position.pass_run(memory, names[1], kind, layers)
    yield position.pass_through(one_pass.after.memory, names[2], logits=names[2] == of_loss)


def _names(kind: PassKind, stage: Stage) -> tuple[str, str, str]:
    """The phases of what stands before the layers, of the layers, and of what stands after them."""
    if kind == "forward":
        return FORWARD, FORWARD, FORWARD
    if kind in ("reduction", "exchange"):
        return REDUCTION, REDUCTION, REDUCTION
    if kind not in PASSES_OF_BATCHES:
        return GATHERING, GATHERING, GATHERING
    return EMBEDDING if stage.is_first else BACKWARD, BACKWARD, BACKWARD


def _runs(model: Shallow, first: int, *, backwards: bool) -> list[tuple[int, range]]:
    """Index in the shallow model and layers of each run of equal layers, in the order of execution."""
    found = []
    for index, count in model.runs:
        found.append((index, range(first, first + count)))
        first += count
    return [(index, layers[::-1]) for index, layers in reversed(found)] if backwards else found


def pipeline_traffic(stages: tuple[Stage, ...], setup: Setup, profile: PipelineProfile) -> Traffics:
    """The traffic of a step of the whole stages, over all micro-batches."""
    assert setup.micro_batches is not None, "a resolved setup"
    further = setup.micro_batches - profile.micro_batches_run
    parts: list[tuple[Traffics, int]] = [(profile.message_traffic, 1), *traffic_after_backward(profile)]
    if further:
        parts.append((profile.further_traffic, further))
    for _, stage, one_pass in actions_with_passes(profile):
        parts += pass_traffic(shallow(stages[stage.stage].spec), one_pass)
    return total_traffic(parts)


def pass_traffic(model: Shallow, one_pass: StagePass) -> list[tuple[Traffics, int]]:
    """The traffic of one pass over all layers of the stage: parts, each with its factor."""
    return [
        (one_pass.before.traffic, 1),
        *((layer.traffic, count) for layer, count in zip(one_pass.layers, model.counts(), strict=True)),
        (one_pass.after.traffic, 1),
    ]
