"""The memory of a training step of the whole model: its phases, each with the worst moment in it, and the worst of all.

A `StepProfile` speaks of one layer of each kind; here each stands as often as the model has it, and in the model's
order. One sequence, one device: nothing is sharded, and gradients do not exist before the step's backward pass unless
the recipe accumulates them in buffers of their own. Torch-free.
"""

from collections.abc import Iterator
from itertools import groupby

import msgspec

from counting.analytic_step_memory import derive_step
from counting.reconcile import Check, reconcile_step_memory
from counting.step_profile import ModelStates, StepOptions, StepProfile, Stretch
from torch_models.spec import ModelSpec

NOTES = (
    "One sequence on one device, nothing sharded. Gradients are let go after each step (set_to_none), unless they are "
    "accumulated in buffers of another format, which stay.",
    "Gradients that meet are added in place where torch does so. Optimisers are torch's: AdamW's fused kernel, and "
    "SGD's loop; with master weights one parameter is updated after the other. Step counters are left out.",
    "muon is counted as one momentum for each parameter; what orthogonalising it takes on the way is not.",
    "fp8 follows DeepSeek-V3's recipe for weights, gradients and optimiser state, by formula from measured parameters; "
    "activations are counted in 16 bits, where the recipe keeps some in fp8, so they are an upper bound.",
)


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """The worst moment of one phase of the step, in bytes.

    `activations` were saved before the phase's own stretch began (token ids, labels and rotary tables included), and
    `gradients` born; what the stretch adds is `logits_and_loss` where it is head and loss, else `transients`: a
    layer's own activations on the way forward, its new gradients on the way back.
    """

    name: str
    parameters: int
    gradients: int
    optimizer_state: int
    activations: int
    logits_and_loss: int
    transients: int

    @property
    def peak_bytes(self) -> int:
        """All of it together."""
        return sum(getattr(self, field) for field in PARTS)


PARTS = Phase.__struct_fields__[1:]


class StepMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The phases of one training step in order, what is held between steps, and the assumptions."""

    options: StepOptions
    states: ModelStates
    buffers: int  # router correction biases
    phases: tuple[Phase, ...]
    peak_phase: str
    peak_bytes: int
    proof: str
    notes: tuple[str, ...] = NOTES


def analyze_step_memory(spec: ModelSpec, options: StepOptions) -> tuple[StepMemory, tuple[Check, ...]]:
    """Measure one step's memory and hold it against the formulas; raises `DisagreementError` where they differ."""
    from counting.step_memory import measure_step

    measured = measure_step(spec, options)
    checks = reconcile_step_memory(spec.name, measured, derive_step(spec, options))
    return step_memory(spec, options, measured), checks


def step_memory(spec: ModelSpec, options: StepOptions, profile: StepProfile) -> StepMemory:
    """`profile`, extended to all layers of `spec`."""
    states = profile.outside_states
    for layer in profile.layers:
        states += layer.states * layer.count
    phases = tuple(_phases(spec, options, profile, states))
    worst = max(phases, key=lambda phase: phase.peak_bytes)
    return StepMemory(
        options=options,
        states=states,
        buffers=profile.buffers,
        phases=phases,
        peak_phase=worst.name,
        peak_bytes=worst.peak_bytes,
        proof="measured = formula"
        if options.precision.measurable
        else "activations measured = formula, states by recipe",
    )


def _phases(spec: ModelSpec, options: StepOptions, profile: StepProfile, states: ModelStates) -> Iterator[Phase]:
    position = _Position(states, profile, apart=options.precision.gradients_apart)
    runs = _runs(spec)
    yield _worst(
        "forward",
        [
            position.pass_through(profile.embedding_forward),
            *(moment for kind, count in runs for moment in position.repeat(profile.layers[kind].forward, count)),
        ],
    )
    yield position.pass_through(profile.loss, name="head and loss", logits=True)
    yield _worst(
        "backward of a layer",
        [moment for kind, count in reversed(runs) for moment in position.repeat(profile.layers[kind].backward, count)],
    )
    yield position.pass_through(profile.embedding_backward, name="backward of the embedding")
    yield position.pass_through(Stretch(peak=profile.optimizer_step, net=0), name="optimiser step")


class _Position:
    """How much is alive between two stretches."""

    def __init__(self, states: ModelStates, profile: StepProfile, *, apart: bool) -> None:
        self.parameters = states.weights + profile.buffers
        self.optimizer_state = states.masters + states.moments
        self.gradients = states.gradients if apart else 0
        self.activations = profile.inputs

    def pass_through(self, stretch: Stretch, name: str = "", *, logits: bool = False) -> Phase:
        """The worst moment of `stretch`, which lies behind afterwards."""
        phase = Phase(
            name=name,
            parameters=self.parameters,
            gradients=self.gradients,
            optimizer_state=self.optimizer_state,
            activations=self.activations,
            logits_and_loss=stretch.peak if logits else 0,
            transients=0 if logits else stretch.peak,
        )
        self._skip(stretch, 1)
        return phase

    def repeat(self, stretch: Stretch, count: int) -> list[Phase]:
        """The first and the last of `count` equal stretches: between them memory rises or falls evenly."""
        if count == 1:
            return [self.pass_through(stretch)]
        first = self.pass_through(stretch)
        self._skip(stretch, count - 2)
        return [first, self.pass_through(stretch)]

    def _skip(self, stretch: Stretch, count: int) -> None:
        self.gradients += stretch.gradients * count
        self.activations += (stretch.net - stretch.gradients) * count


def _worst(name: str, moments: list[Phase]) -> Phase:
    return msgspec.structs.replace(max(moments, key=lambda phase: phase.peak_bytes), name=name)


def _runs(spec: ModelSpec) -> list[tuple[int, int]]:
    """The layers in order, as (index of the kind, how many in a row)."""
    kinds = {layer: index for index, (layer, _) in enumerate(spec.layer_groups())}
    by_identity = {id(layer): kinds[layer] for layer in {id(layer): layer for layer in spec.layers}.values()}
    order = (by_identity[id(layer)] for layer in spec.layers)
    return [(kind, sum(1 for _ in group)) for kind, group in groupby(order)]
