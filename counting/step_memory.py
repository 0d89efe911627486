"""The memory of a training step of the whole model: its phases, each with the worst moment in it, and the worst of all.

A `StepProfile` speaks of one layer of each kind; here each stands as often as the model has it, and in the model's
order. One sequence, one device: nothing is sharded, and gradients do not exist before the step's backward pass unless
the recipe accumulates them in buffers of their own. Torch-free.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import msgspec

from counting.formulas.memory.step import derive_step
from counting.reconcile import Check, reconcile_step_memory
from counting.step_profile import ModelStates, StepOptions, StepProfile, Stretch
from torch_models.spec import ModelSpec

NOTES = (
    "One sequence on one device: nothing sharded, no gradient accumulation, no clipping. Gradients are let go after "
    "each step (set_to_none), unless they are accumulated in buffers of another format, which stay.",
    "Gradients that meet are added in place where torch does so. Optimisers are torch's: AdamW's fused kernel, and "
    "SGD's loop; with master weights one parameter is updated after the other, where an optimiser that converts all "
    "gradients first holds an fp32 copy of each. Step counters are left out.",
    "Not counted: workspaces within kernels (flash attention's backward has one in fp32), the allocator's rounding and "
    "gaps, the CUDA context.",
)
MUON_NOTE = (
    "muon is counted as one momentum for each parameter, whatever its shape; Muon itself leaves embedding, head and "
    "vectors to AdamW, with two. What orthogonalising takes on the way is not counted."
)
FP8_NOTE = (
    "fp8 follows DeepSeek-V3's recipe for weights, gradients and optimiser state, by formula from measured parameters; "
    "activations are counted in 16 bits, where the recipe keeps some in fp8, so they are an upper bound."
)
FUSED_FP32_NOTE = (
    "CUDA has no flash attention in fp32: torch runs its memory-efficient kernel, or, with grouped queries, none. What "
    "is counted is flash attention's memory, with numbers of 4 bytes; --kernels eager has that of plain arithmetic."
)


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """The worst moment of one phase of the step, in bytes.

    `gradients` are those of parameters, and `activations` what was saved before the phase's own stretch began and is
    still there (token ids, labels and rotary tables included). What else the stretch holds is `logits_and_loss` where
    it is head and loss, with multi-token prediction's passes where that is trained, else `transients`: of a layer's way
    forward its own activations, of its way back the gradients of those. A gradient that waits for the parameter's other
    use, to be added up out of place as a tied head's, is an activation until then.
    """

    name: str
    layer: int | None  # where it is, in a phase of many layers; the first is 0
    layer_kind: str | None
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


PARTS = Phase.__struct_fields__[3:]


class StepMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The phases of one training step in order, what is held between steps, and the assumptions."""

    options: StepOptions
    states: ModelStates
    buffers: int  # router correction biases
    phases: tuple[Phase, ...]
    layer_backward_peak_bytes: tuple[int, ...]  # of each layer's way back, in the model's order
    peak_phase: str
    peak_bytes: int
    proof: str
    notes: tuple[str, ...]


def analyze_step_memory(spec: ModelSpec, options: StepOptions) -> tuple[StepMemory, tuple[Check, ...]]:
    """Measure one step's memory and hold it against the formulas; raises `DisagreementError` where they differ."""
    from counting.measurements.step import measure_step

    measured = measure_step(spec, options)
    checks = reconcile_step_memory(spec.name, measured, derive_step(spec, options))
    return step_memory(spec, options, measured), checks


def step_memory(spec: ModelSpec, options: StepOptions, profile: StepProfile) -> StepMemory:
    """`profile`, extended to all layers of `spec`."""
    states = profile.outside_states
    for layer in profile.layers:
        states += layer.states * layer.count
    position = _Position(states, profile, apart=options.precision.gradients_apart)
    runs = list(_runs(spec))
    forward = [position.pass_through(profile.embedding_forward, "forward")]
    for run in runs:
        forward += position.pass_layers(profile.layers[run.kind].forward, "forward", run.kind_name, run.layers)
    predicted = options.mtp and spec.mtp_layers
    loss = position.pass_through(profile.loss, "head, loss and MTP" if predicted else "head and loss", logits=True)
    backward: list[Phase] = []
    for run in reversed(runs):
        stretch, layers = profile.layers[run.kind].backward, run.layers[::-1]
        backward += position.pass_layers(stretch, "backward of a layer", run.kind_name, layers)
    phases = (
        _worst(forward),
        loss,
        _worst(backward),
        position.pass_through(profile.embedding_backward, "backward of the embedding"),
        position.pass_through(Stretch(peak=profile.optimizer_step, net=0), "optimiser step"),
    )
    worst = _worst(phases)
    return StepMemory(
        options=options,
        states=states,
        buffers=profile.buffers,
        phases=phases,
        layer_backward_peak_bytes=tuple(moment.peak_bytes for moment in reversed(backward)),
        peak_phase=worst.name,
        peak_bytes=worst.peak_bytes,
        proof="measured = formula"
        if options.precision.measurable
        else "activations measured = formula, states by recipe",
        notes=tuple(_notes(options)),
    )


def _notes(options: StepOptions) -> Iterator[str]:
    yield from NOTES
    if options.optimizer.name == "muon":
        yield MUON_NOTE
    if not options.precision.measurable:
        yield FP8_NOTE
    if options.precision.name == "fp32" and options.kernels == "fused":
        yield FUSED_FP32_NOTE


class _Position:
    """How much is alive between two stretches."""

    def __init__(self, states: ModelStates, profile: StepProfile, *, apart: bool) -> None:
        self.parameters = states.weights + profile.buffers
        self.optimizer_state = states.masters + states.moments
        self.gradients = states.gradients if apart else 0
        self.activations = profile.inputs

    def pass_through(
        self, stretch: Stretch, name: str, *, layer: int | None = None, kind: str | None = None, logits: bool = False
    ) -> Phase:
        """The worst moment of `stretch`, which lies behind afterwards."""
        others = stretch.peak - stretch.peak_gradients + stretch.peak_released
        phase = Phase(
            name=name,
            layer=layer,
            layer_kind=kind,
            parameters=self.parameters,
            gradients=self.gradients + stretch.peak_gradients,
            optimizer_state=self.optimizer_state,
            activations=self.activations - stretch.peak_released,
            logits_and_loss=others if logits else 0,
            transients=0 if logits else others,
        )
        self.gradients += stretch.gradients
        self.activations += stretch.net - stretch.gradients
        return phase

    def pass_layers(self, stretch: Stretch, name: str, kind: str, layers: range) -> list[Phase]:
        """The worst moment of each of these equal layers, in the order in which they are passed."""
        return [self.pass_through(stretch, name, layer=layer, kind=kind) for layer in layers]


def _worst(moments: Sequence[Phase]) -> Phase:
    return max(moments, key=lambda phase: phase.peak_bytes)


class _Run(NamedTuple):
    """Equal layers in a row."""

    kind: int  # its index in the profile
    kind_name: str
    layers: range


def _runs(spec: ModelSpec) -> Iterator[_Run]:
    """The layers in the model's order."""
    kinds = {layer: index for index, (layer, _) in enumerate(spec.layer_groups())}
    by_identity = {id(layer): kinds[layer] for layer in {id(layer): layer for layer in spec.layers}.values()}
    order = (by_identity[id(layer)] for layer in spec.layers)
    first = 0
    for kind, group in groupby(order):
        after = first + sum(1 for _ in group)
        yield _Run(kind, spec.layers[first].kind, range(first, after))
        first = after
