"""The memory of a training step of the whole model: the worst moment of each phase, and the worst of all.

A `StepProfile` describes one layer of each kind. Here the layers are repeated as often as the model has them, in the
model's order; a run of equal layers is computed at once. One device: nothing is sharded, and gradients do not exist
before the step's backward pass, unless the recipe accumulates them in separate buffers. Torch-free.
"""

from collections.abc import Iterator, Sequence

import msgspec

from counting.recipes import ModelStates, states_measurable
from counting.records.tidy import Tidy
from counting.setup import Setup
from counting.step.phase import Outside, Phase, Position, RunOfLayers, pass_micro_batch, worst_of
from counting.step.profile import Passes, StepProfile, Stretch
from torch_models.spec import AttentionSpec, GroupedQueryAttentionSpec, Kernels, ModelRecompute, ModelSpec

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
RESERVED_NOTE = (
    "Reserved is an estimate: every allocation of two whole steps, each on its stream, with the known workspaces of "
    "kernels, replayed in a model of torch's caching allocator. It is a range where it depends on addresses. Runs "
    "at the edge of a GPU's memory, where the allocator frees and tries again, and reference cycles are not modelled."
)
WORST_REPLAYED_NOTE = (
    "Of this pipeline only the rank with the largest allocated peak is replayed, because all take long: a rank at "
    "another place may reserve more."
)
TAKES_LONG_NOTE = "What the allocator reserves is left out: its estimate takes long here, and was not asked for."
DIVIDED_NOTE = (
    "What the allocator reserves is left out: of compiled layers it is modelled where each rank has whole ones, and "
    "where recomputation is not selective."
)
COMPILED_NOTE = (
    "Compiled layers: what is reserved, and the peak beside it, are of layers that torch's partitioner cuts into "
    "forward and backward, with a rule of which results the generated code stores. All other numbers are of a step "
    "that is run op by op."
)
NOT_RESERVED_NOTE = (
    "What the allocator reserves is not estimated: of another framework no step is run, nor is one with an update that "
    "torch does not run on the meta device."
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
    "PyTorch's scaled_dot_product_attention takes no window, no chunks, no bound on scores and no sinks, and in flash "
    "attention no heads of over 256 channels. What is counted is one fused kernel with them, such as FlexAttention "
    "has on CUDA."
)


CLIPPING, UPDATE = "gradient clipping", "optimiser step"  # the phases after backward


class Alternative(msgspec.Struct, frozen=True, kw_only=True):
    """A variant of the step: its peak by simulation, with measured states, and its recomputed FLOPs by formula.

    A measured step with these settings has the same numbers; a test measures some. Through transformers each is
    measured.
    """

    kernels: Kernels
    recompute: ModelRecompute
    loss_chunk: int | None
    peak_bytes: int
    recomputed_flops: int


class PoolOfStream(msgspec.Struct, frozen=True, kw_only=True):
    """Free bytes that the allocator keeps for one stream: no other stream gets them.

    `idle_bytes` are whole segments or pages, `fragment_bytes` lie beside blocks in use.
    """

    stream: str
    reserved_bytes: int
    idle_bytes: int
    fragment_bytes: int


class ReservedParts(msgspec.Struct, frozen=True, kw_only=True):
    """What the most reserved bytes are: blocks in use, and the free bytes of each stream's pool; an estimate.

    They are those of the fullest moment among those with most reserved. `peak_allocated_bytes` is what torch counts as
    allocated at most, at whatever moment: rounded blocks, workspaces of kernels among them.
    """

    expandable_segments: bool
    replays: int  # which differ in the addresses of segments, and in nothing else
    allocated_bytes: int
    pools: tuple[PoolOfStream, ...]
    peak_allocated_bytes: int
    idle_bytes: int = 0  # of all streams, as the next; both are summed up from `pools`, whatever is given for them
    fragment_bytes: int = 0

    def __post_init__(self) -> None:
        for field in ("idle_bytes", "fragment_bytes"):
            msgspec.structs.force_setattr(self, field, sum(getattr(pool, field) for pool in self.pools))


class StepMemory(Tidy, frozen=True, kw_only=True):
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
    reserved_bytes: tuple[int, int] | None = None  # by the caching allocator, low and high; None: not worked out
    reserved_parts: ReservedParts | None = None  # of the high one

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
    """`profile` extended to all layers of `spec`; its stretches, states, inputs and buffers must be set."""
    places = {layer: index for index, (layer, _) in enumerate(spec.layer_groups())}
    measurable = states_measurable(setup.precision_recipe, setup.optimizer_recipe)
    return memory_of_runs(
        [(places[run.layer], run.count) for run in spec.layer_runs],
        setup,
        profile,
        proof="measured = simulated" if measurable else "activations measured = simulated, states by recipe",
        notes=tuple(_notes(spec, setup)),
    )


def memory_of_runs(
    runs: Sequence[tuple[int, int]], setup: Setup, profile: StepProfile, *, proof: str, notes: tuple[str, ...]
) -> StepMemory:
    """`profile` extended to all layers of a model; its stretches, states, inputs and buffers must be set.

    `runs` are equal layers in a row, in the model's order: the index of their kind in the profile, and their number.
    The third micro-batch and those after it repeat the second byte by byte: it lets go of all that it adds.
    """
    assert profile.first_micro_batch and profile.outside_states and profile.buffers is not None
    states = profile.outside_states
    for layer in profile.layers:
        assert layer.states is not None
        states += layer.states * layer.count
    stay = setup.precision_recipe.gradients_apart or setup.zero_gradients == "in_place"
    assert profile.inputs is not None
    position = Position(states, buffers=profile.buffers, inputs=profile.inputs, gradients_stay=stay)
    passes = [profile.first_micro_batch, *([profile.later_micro_batch] if profile.later_micro_batch else [])]
    of_passes = [
        pass_micro_batch(
            position,
            index,
            Outside(each.embedding_forward, each.loss, each.embedding_backward),
            list(_runs(runs, each)),
            mtp=bool(setup.mtp),
        )
        for index, each in enumerate(passes)
    ]
    phases = (
        *(worst_of(alike) for alike in zip(*(phases for phases, _ in of_passes), strict=True)),
        *(
            [position.pass_through(Stretch(peak=profile.gradient_clipping, net=0), CLIPPING)]
            if profile.gradient_clipping is not None
            else []
        ),
        position.pass_through(Stretch(peak=profile.optimizer_step or 0, net=0), UPDATE),
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
        notes=notes,
    )


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


def notes_of_setup(setup: Setup) -> Iterator[str]:
    """What is said of every step with this setup."""
    yield from STEP_NOTES
    if setup.optimizer_recipe.note is not None:
        yield setup.optimizer_recipe.note
    if setup.clip_gradients:
        yield CLIPPING_NOTE
    if not setup.precision_recipe.measurable:
        yield FP8_NOTE


def _notes(spec: ModelSpec, setup: Setup) -> Iterator[str]:
    yield from notes_of_setup(setup)
    if setup.precision == "fp32" and setup.kernels == "fused":
        yield FUSED_FP32_NOTE
    if setup.kernels == "fused" and any(_beyond_plain_attention(layer.attention) for layer, _ in spec.layer_groups()):
        yield WINDOW_NOTE


def _beyond_plain_attention(attention: AttentionSpec) -> bool:
    return isinstance(attention, GroupedQueryAttentionSpec) and attention.needs_own_kernel


def _runs(runs: Sequence[tuple[int, int]], passes: Passes) -> Iterator[RunOfLayers]:
    """The runs of equal layers, in the model's order."""
    first = 0
    for index, count in runs:
        found = passes.layers[index]
        yield RunOfLayers(found.kind, found.forward, found.backward, range(first, first + count))
        first += count
