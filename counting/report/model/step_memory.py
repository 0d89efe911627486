"""The table of one training step's memory, phase by phase."""

from counting.report.format import integer, recompute_in_words, shifted
from counting.report.tables import Table
from counting.setup import Setup
from counting.step.memory import StepMemory
from counting.step.phase import PARTS, Phase

LABELS = {
    "optimizer_state": "optimiser state",
    "gathered_parameters": "gathered parameters",
    "communication_buffers": "communication buffers",
    "logits_and_loss": "logits and loss",
}


def step_memory_table(
    memory: StepMemory, setup: Setup, *, of: str = "the training step", recipe: str | None = None
) -> Table:
    """A row for each kind of memory, a column for the peak of each phase; the phase with the highest peak is bold.

    `of` names the step or the rank; `recipe` describes the formats of its states, if not as the setup's does.
    """
    (peak,) = (phase for phase in memory.phases if phase.name == memory.peak_phase)
    batches = "1 micro-batch" if setup.micro_batches == 1 else f"{setup.micro_batches:,} micro-batches"
    recompute = recompute_in_words(setup.recompute)
    title = (
        f"Memory of {of} in bytes: {setup.precision} precision, {setup.optimizer}, "
        f"recompute {recompute}, {batches} of {setup.tokens:,} tokens; the peak is in the {peak.name}"
        + "".join(f", {place}" for place in _places(peak, setup))
    )
    table = Table(title=title, caption=_caption(memory, setup, recipe))
    table.add_column("", is_number=False)
    for phase in memory.phases:
        table.add_column(phase.name, bold=phase.name == memory.peak_phase)
    table.add_row("peak in", *(", ".join(_places(phase, setup)) for phase in memory.phases))
    for part in PARTS:
        numbers = [getattr(phase, part) for phase in memory.phases]
        if any(numbers):
            table.add_row(LABELS.get(part, part), *map(integer, numbers))
    table.add_section()
    table.add_row("peak", *(integer(phase.peak_bytes) for phase in memory.phases))
    table.add_row("peak in GB", *(shifted(phase.peak_bytes, 9, places=1) for phase in memory.phases))
    return table


def _places(phase: Phase, setup: Setup) -> list[str]:
    """The layer and, if there are several, the micro-batch of the worst moment, both from 0."""
    places = [] if phase.layer is None else [f"layer {phase.layer} ({phase.layer_kind})"]
    if phase.micro_batch is not None and setup.micro_batches != 1:
        places.append(f"micro-batch {phase.micro_batch}")
    return places


def _caption(memory: StepMemory, setup: Setup, recipe: str | None) -> str:
    states, backward = memory.states, memory.layer_backward_peak_bytes
    measured = []
    if backward:
        lowest, highest = (shifted(peak, 9, places=1) for peak in (min(backward), max(backward)))
        measured = [
            f"Over the layers, the peak of backward lies between {lowest} and {highest} GB.",
            f"The step was measured in {setup.measured_dtype}.",
        ]
    sentences = [
        f"Model states: weights {integer(states.weights)}, gradients {integer(states.gradients)} when all exist, "
        f"master weights {integer(states.masters)}, moments {integer(states.moments)}; "
        f"{recipe or setup.precision_recipe.description}.",
        *measured,
        *memory.notes,
    ]
    return " ".join(sentences)
