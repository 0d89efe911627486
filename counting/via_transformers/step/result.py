"""The results of a measured step: its FLOPs, and its memory extended to all layers of the model. No formula."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from msgspec import structs

from counting.counts import AttentionCore
from counting.recipes import states_measurable
from counting.setup import Setup
from counting.step.flops import TrainingStep, training_step
from counting.step.memory import Alternative, StepMemory, memory_of_runs, notes_of_setup, with_states
from counting.step.profile import StepProfile
from counting.via_transformers.step.measure import BuiltStep

NAMED = 3  # of parameters without gradients, in a note

STEP_NOTE = (
    "The step is that of transformers' modules in training mode, with this project's loss on their logits. Dropout is "
    "included, with masks in the format of what they drop, where a GPU keeps one byte a number; "
    "none in a fused kernel. Rotary tables and masks are made anew in each micro-batch. Attention is one fused kernel "
    "where the family runs transformers' attention functions, else the family's own code. Layers are recomputed as a "
    "whole."
)


class StepResults(NamedTuple):
    """FLOPs and memory of a step."""

    training: TrainingStep
    memory: StepMemory


def step_results(
    step: BuiltStep, agreed: StepProfile, core: AttentionCore, setup: Setup, others: Iterable[tuple[Setup, BuiltStep]]
) -> StepResults:
    """The results of `step`; `agreed` is its profile with all states, `core` the attention core of one micro-batch.

    `others` are measured steps that differ from this one in settings that save memory.
    """
    measurable = states_measurable(setup.precision_recipe, setup.optimizer_recipe)
    proof = "measured, no formula" if measurable else "activations measured, no formula; states by recipe"
    memory = memory_of_runs(step.runs, setup, agreed, proof=proof, notes=tuple(_notes(step, setup)))
    alternatives = sorted((_alternative(*other) for other in others), key=lambda other: other.recomputed_flops)
    return StepResults(
        training_step(step.flops, core * (setup.micro_batches or 1), setup),
        structs.replace(memory, alternatives=tuple(alternatives)),
    )


def _alternative(setup: Setup, step: BuiltStep) -> Alternative:
    profile = step.profile if step.by_recipe is None else with_states(step.profile, step.by_recipe)
    return Alternative(
        kernels=setup.kernels,
        recompute=setup.recompute,
        loss_chunk=setup.loss_chunk,
        peak_bytes=memory_of_runs(step.runs, setup, profile, proof="", notes=()).peak_bytes,
        recomputed_flops=step.flops.recomputed.total,
    )


def _notes(step: BuiltStep, setup: Setup) -> Iterator[str]:
    yield from notes_of_setup(setup)
    yield STEP_NOTE
    if step.untrained:
        names = ", ".join(step.untrained[:NAMED]) + (", ..." if len(step.untrained) > NAMED else "")
        yield f"Backward gives these parameters no gradient, so that they have no state but weights: {names}."
