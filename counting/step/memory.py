"""The memory of a training step of the whole model: the worst moment of each phase, and the worst of all.

A `StepProfile` describes one layer of each kind. Here the layers are repeated as often as the model has them, in the
model's order; a run of equal layers is computed at once. One device: nothing is sharded, and gradients do not exist
before the step's backward pass, unless the recipe accumulates them in separate buffers. Torch-free.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from counting.recipes import ModelStates, states_measurable
from counting.setup import Setup
from counting.step.profile import Passes, StepProfile, Stretch
from torch_models.spec import AttentionSpec, GroupedQueryAttentionSpec, Kernels, ModelSpec, Recompute

STEP_NOTES = (
    "On one device: nothing sharded. Gradients are freed after each step (set_to_none), unless they are zeroed in "
    "place or accumulated in buffers of another format, which stay. From the second micro-batch on, those of the first "
    "are there, and each new one is added in place as soon as it is complete, and freed.",
    "Several gradients of one tensor are added in place where torch does so. With master weights, parameters are "
    "updated one by one, and 16-bit gradients converted to fp32 one by one, unless the optimiser computes with all "
    "parameters at once. Step counters are left out.",
    "Not counted: workspaces within kernels (flash attention's backward has one in fp32), the allocator's rounding and "
    "gaps; nor the CUDA context, which only the fit on a GPU adds.",
)
CLIPPING_NOTE = (
    "Gradients are clipped by torch's clip_grad_norm_, which has a norm for each tensor and a copy of all norms; it "
    "scales the gradients in place."
)
FP8_NOTE = (
    "fp8 follows DeepSeek-V3's recipe for weights, gradients and optimiser state, by formula from measured parameters; "
    "activations are counted in 16 bits, which is an upper bound, because the recipe keeps some in fp8. What the "
    "optimiser allocates on the way is not counted, copies of all parameters included."
)
FUSED_FP32_NOTE = (
    "CUDA has no flash attention in fp32: torch runs its memory-efficient kernel or, with grouped queries, none. "
    "Flash attention's memory is counted, with 4 bytes per number; for eager kernels, that of plain arithmetic."
)
WINDOW_NOTE = (
    "PyTorch's scaled_dot_product_attention takes no window, no bound on scores and no sinks. What is counted is one "
    "fused kernel with them, such as FlexAttention has on CUDA."
)


CLIPPING, UPDATE = "gradient clipping", "optimiser step"  # the phases after backward


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """The worst moment of one phase of the step, in bytes.

    `gradients` are those of parameters. `activations` are the tensors saved before this phase's stretch that are still
    alive (including token ids, labels and rotary tables). All other bytes of the stretch are `logits_and_loss` for
    head and loss (including the passes of multi-token prediction if it is trained), else `transients`: in a layer's
    forward pass its own activations, in its backward pass their gradients. A gradient that is to be added out of place
    to one from another use of the parameter, such as a tied head's, counts as an activation until it is added.
    """

    name: str
    micro_batch: int | None  # the first in which the worst moment occurs, from 0; None in a phase without micro-batches
    layer: int | None  # the layer of the worst moment, from 0; None in a phase without layers
    layer_kind: str | None
    parameters: int
    gradients: int
    optimizer_state: int
    activations: int
    logits_and_loss: int
    transients: int

    @property
    def peak_bytes(self) -> int:
        """The sum of all parts."""
        return sum(getattr(self, field) for field in PARTS)


PARTS = Phase.__struct_fields__[4:]


class Alternative(msgspec.Struct, frozen=True, kw_only=True):
    """A variant of the step: its peak by simulation, with measured states, and its recomputed FLOPs by formula.

    A measured step with these settings has the same numbers; a test measures some.
    """

    kernels: Kernels
    recompute: Recompute
    loss_chunk: int | None
    peak_bytes: int
    recomputed_flops: int


class StepMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The phases of one training step in order, the model states, and the assumptions."""

    states: ModelStates
    buffers: int  # router correction biases
    phases: tuple[Phase, ...]
    layer_backward_peak_bytes: tuple[int, ...]  # of each layer, in the model's order
    peak_phase: str
    peak_bytes: int
    proof: str
    notes: tuple[str, ...]
    alternatives: tuple[Alternative, ...] = ()  # for each choice of kernels the cheapest first

    @property
    def beside_states_bytes(self) -> int:
        """The largest sum of activations, logits and transients over the phases of forward and backward."""
        passes = (phase for phase in self.phases if phase.name not in (CLIPPING, UPDATE))
        return max(phase.activations + phase.logits_and_loss + phase.transients for phase in passes)

    @property
    def update_bytes(self) -> int:
        """The most that clipping or update allocates, over all parameters."""
        return max(phase.transients for phase in self.phases if phase.name in (CLIPPING, UPDATE))


def step_memory(spec: ModelSpec, setup: Setup, profile: StepProfile) -> StepMemory:
    """`profile` extended to all layers of `spec`; its stretches, states, inputs and buffers must be set.

    The third micro-batch and those after it repeat the second byte by byte: it lets go of all that it adds.
    """
    assert profile.first_micro_batch and profile.outside_states and profile.buffers is not None
    states = profile.outside_states
    for layer in profile.layers:
        assert layer.states is not None
        states += layer.states * layer.count
    stay = setup.precision_recipe.gradients_apart or setup.zero_gradients == "in_place"
    position = _Position(states, profile, gradients_stay=stay)
    loss_name = "head, loss and MTP" if setup.mtp else "head and loss"
    passes = [profile.first_micro_batch, *([profile.later_micro_batch] if profile.later_micro_batch else [])]
    of_passes = [_pass_micro_batch(position, spec, each, index, loss_name) for index, each in enumerate(passes)]
    phases = (
        *(_worst(alike) for alike in zip(*(phases for phases, _ in of_passes), strict=True)),
        *(
            [position.pass_through(Stretch(peak=profile.gradient_clipping, net=0), CLIPPING)]
            if profile.gradient_clipping is not None
            else []
        ),
        position.pass_through(Stretch(peak=profile.optimizer_step or 0, net=0), UPDATE),
    )
    worst = _worst(phases)
    measurable = states_measurable(setup.precision_recipe, setup.optimizer_recipe)
    return StepMemory(
        states=states,
        buffers=profile.buffers,
        phases=phases,
        layer_backward_peak_bytes=tuple(map(max, zip(*(peaks for _, peaks in of_passes), strict=True))),
        peak_phase=worst.name,
        peak_bytes=worst.peak_bytes,
        proof="measured = simulated" if measurable else "activations measured = simulated, states by recipe",
        notes=tuple(_notes(spec, setup)),
    )


def _pass_micro_batch(
    position: "_Position", spec: ModelSpec, passes: Passes, index: int, loss_name: str
) -> tuple[list[Phase], list[int]]:
    """The worst moment of each phase of one micro-batch, and the peaks of the layers' backward passes in order."""
    position.micro_batch = index
    runs = list(_runs(spec, passes))
    forward = [position.pass_through(passes.embedding_forward, "forward")]
    for run in runs:
        forward += position.pass_run(run.forward, "forward", run.kind, run.layers)
    loss = position.pass_through(passes.loss, loss_name, logits=True)
    backward: list[Phase] = []
    backward_peaks: list[int] = []
    for run in reversed(runs):
        ends = position.pass_run(run.backward, "backward of a layer", run.kind, run.layers[::-1])
        backward += ends
        backward_peaks += _between(ends[0].peak_bytes, ends[-1].peak_bytes, len(run.layers))
    of_embedding = position.pass_through(passes.embedding_backward, "backward of the embedding")
    position.micro_batch = None
    return [_worst(forward), loss, _worst(backward), of_embedding], backward_peaks[::-1]


def with_states(simulated: StepProfile, agreed: StepProfile) -> StepProfile:
    """`simulated`, which has no states, with the states of `agreed`, a step of the same model."""
    return msgspec.structs.replace(
        simulated,
        layers=tuple(
            msgspec.structs.replace(layer, states=known.states)
            for layer, known in zip(simulated.layers, agreed.layers, strict=True)
        ),
        outside_states=agreed.outside_states,
    )


def _between(first: int, last: int, count: int) -> list[int]:
    """`count` numbers in equal steps from `first` to `last`."""
    step = (last - first) // (count - 1) if count > 1 else 0
    return [first + step * index for index in range(count)]


def _notes(spec: ModelSpec, setup: Setup) -> Iterator[str]:
    yield from STEP_NOTES
    if setup.optimizer_recipe.note is not None:
        yield setup.optimizer_recipe.note
    if setup.clip_gradients:
        yield CLIPPING_NOTE
    if not setup.precision_recipe.measurable:
        yield FP8_NOTE
    if setup.precision == "fp32" and setup.kernels == "fused":
        yield FUSED_FP32_NOTE
    if setup.kernels == "fused" and any(_beyond_plain_attention(layer.attention) for layer, _ in spec.layer_groups()):
        yield WINDOW_NOTE


def _beyond_plain_attention(attention: AttentionSpec) -> bool:
    return isinstance(attention, GroupedQueryAttentionSpec) and not (
        attention.window is None and attention.logit_softcap is None and not attention.sinks
    )


class _Position:
    """The bytes that are alive between two stretches, of the micro-batch with this number."""

    def __init__(self, states: ModelStates, profile: StepProfile, *, gradients_stay: bool) -> None:
        assert profile.inputs is not None and profile.buffers is not None
        self.parameters = states.weights + profile.buffers
        self.optimizer_state = states.masters + states.moments
        self.gradients = states.gradients if gradients_stay else 0
        self.activations = profile.inputs
        self.micro_batch: int | None = None

    def pass_through(
        self, stretch: Stretch, name: str, *, layer: int | None = None, kind: str | None = None, logits: bool = False
    ) -> Phase:
        """The worst moment of `stretch`; moves the position to its end."""
        others = stretch.peak - stretch.peak_gradients + stretch.peak_released
        phase = Phase(
            name=name,
            micro_batch=self.micro_batch,
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

    def pass_run(self, stretch: Stretch, name: str, kind: str, layers: range) -> list[Phase]:
        """The worst moments of the first and the last of these equal layers, in the order of execution.

        Each layer adds the same number of bytes, so the peaks of the layers between lie in equal steps between the two.
        """
        first = self.pass_through(stretch, name, layer=layers[0], kind=kind)
        if len(layers) == 1:
            return [first]
        self.gradients += stretch.gradients * (len(layers) - 2)
        self.activations += (stretch.net - stretch.gradients) * (len(layers) - 2)
        return [first, self.pass_through(stretch, name, layer=layers[-1], kind=kind)]


def _worst(moments: Sequence[Phase]) -> Phase:
    return max(moments, key=lambda phase: phase.peak_bytes)


class _Run(NamedTuple):
    """Equal consecutive layers."""

    kind: str
    forward: Stretch
    backward: Stretch
    layers: range


def _runs(spec: ModelSpec, passes: Passes) -> Iterator[_Run]:
    """The runs of equal layers, in the model's order."""
    of_layer = {layer: found for (layer, _), found in zip(spec.layer_groups(), passes.layers, strict=True)}
    first = 0
    for run in spec.layer_runs:
        found = of_layer[run.layer]
        yield _Run(found.kind, found.forward, found.backward, range(first, first + run.count))
        first += run.count
