"""Operations of one decoder layer, and the bytes alive at the peak of its forward pass.

Each function runs the operations of one block in order, for one micro-batch and the kernels that torch runs on CUDA. As
in torch, a tensor is alive as long as a Python variable, an operation or a gradient refers to it.

Legend: B sequences, S tokens of each, T = B S, D hidden_size, F intermediate_size, E experts, K experts per token,
H query heads, G key/value heads, C channels of a query head.
"""

from collections.abc import Callable
from functools import partial

from counting.counts import LayerMemory
from counting.formulas.local.shapes import UNDIVIDED, Division
from counting.formulas.memory.attention.block import attention
from counting.formulas.memory.blocks import gated_mlp, plain_mlp, stream_norm
from counting.formulas.memory.collectives import sum_of_parts, whole_input
from counting.formulas.memory.experts import Around, mixture_of_experts, routed_tokens
from counting.formulas.memory.operations import add, reshape, scale_by_buffer
from counting.formulas.memory.tape import HALF, SINGLE, Array, Edge, Kernel, Operation, Tape
from counting.formulas.parameters import parameters, router_correction_bias
from counting.setup import MicroBatch
from torch_models.spec import GatedMLPSpec, Kernels, LayerSpec, MixtureOfExpertsSpec, MLPSpec, Recompute


def simulate_layer(spec: LayerSpec, batch: MicroBatch, kernels: Kernels, *, grad: bool) -> LayerMemory:
    """Return the bytes alive at the peak of one layer's forward pass over one micro-batch, in 16 bits.

    With `grad` it is the pass that full recompute runs in backward; without it, the first pass.
    """
    tape = Tape(grad=grad)
    rotary = rotary_tables(tape, spec, batch.length, HALF)
    x = residual_stream(tape, spec, batch.tokens, HALF)
    tape.watch()
    out = transform(tape, spec, x, batch, kernels, "none")
    at_peak, boundary = tape.at_peak, x.storage.serial
    shared = {table.storage.serial for table in rotary}
    kept = (tape.alive.keys() | (shared if grad else set())) - {boundary, out.storage.serial}
    kept -= set() if grad else tape.alive.keys()
    saved = sum(size for serial, size in at_peak.items() if serial in kept)
    return LayerMemory(
        weights=HALF * (parameters(spec).total + spec.output_scale) + SINGLE * router_correction_bias(spec),
        boundary=at_peak[boundary],
        saved=saved,
        transients=sum(at_peak.values()) - at_peak[boundary] - saved,
    )


def rotary_tables(tape: Tape, spec: LayerSpec, positions: int, width: int) -> tuple[Array, ...]:
    """The cos and sin tables: one number for each position and pair of rotated channels; none without rotation."""
    if spec.attention.rotary is None:
        return ()
    half = positions * spec.attention.rotary.dim // 2
    return tape.new(half, width), tape.new(half, width)


def residual_stream(tape: Tape, spec: LayerSpec, tokens: int, width: int) -> Array:
    """A layer's input; it has a gradient if the tape records."""
    x = tape.new(tokens * spec.hidden_size, width)
    if tape.recording:
        x.edge = Edge(Operation(1, (), (), lambda gradients: []))
    return x


def layer(
    tape: Tape,
    spec: LayerSpec,
    x: Array,
    batch: MicroBatch,
    kernels: Kernels,
    recompute: Recompute,
    division: Division = UNDIVIDED,
    around: Around | None = None,
) -> Array:
    """Run one layer; with full recompute only its input is kept for backward, by operation the outputs of products too.

    `spec` is the part of the layer that this rank has, and `x` has the positions of the residual stream on it.
    """
    run = partial(
        transform, tape, spec, batch=batch, kernels=kernels, recompute=recompute, division=division, around=around
    )
    return recomputed(tape, spec, run, x, recompute=recompute)


def recomputed(tape: Tape, spec: LayerSpec, run: Callable[..., Array], *inputs: Array, recompute: Recompute) -> Array:
    """Return `run(*inputs)`, the output of a layer of which `recompute` is computed again."""
    if recompute == "full":
        return tape.checkpoint(run, *inputs)
    if recompute == "per_op":
        return tape.checkpoint(run, *inputs, keeps=_EverySecondProduct(spec))
    return run(*inputs)


class _EverySecondProduct:
    """Keeps all but every second product with a matrix; those with the router's shape are not kept and not counted."""

    def __init__(self, spec: LayerSpec) -> None:
        self.router: tuple[int, int] | None = None
        if isinstance(spec.feed_forward, MixtureOfExpertsSpec):
            self.router = spec.feed_forward.router.hidden_size, spec.feed_forward.router.num_experts
        self.count = 0

    def __call__(self, kernel: Kernel) -> bool:
        if kernel.name != "mm":
            return True
        if kernel.matrix == self.router:
            return False
        self.count += 1
        return self.count % 2 == 1


def transform(
    tape: Tape,
    spec: LayerSpec,
    x: Array,
    batch: MicroBatch,
    kernels: Kernels,
    recompute: Recompute,
    division: Division = UNDIVIDED,
    around: Around | None = None,
) -> Array:
    """Run attention, then feed-forward, each with its norms and the sum with the residual stream."""
    before, after = spec.norm_placement != "after", spec.norm_placement != "before"
    rows = division.stream_tokens(batch)

    def normed(x: Array, wanted: bool) -> Array:
        if not wanted:
            return x
        return stream_norm(tape, spec, x, rows, kernels, division)

    def attended(x: Array) -> Array:
        whole = whole_input(tape, x, batch, division)
        out = attention(tape, spec.attention, whole, batch, kernels, recompute, division)
        return sum_of_parts(tape, out, batch, division)

    x = add(tape, x, normed(attended(normed(x, before)), after))
    if spec.parallel_mlp is None:
        x = add(tape, x, normed(_feed_forward(tape, spec, normed(x, before), batch, kernels, division, around), after))
    else:
        x = add(tape, x, normed(_both_branches(tape, spec, x, batch, kernels, division, around, normed), after))
    return scale_by_buffer(tape, x) if spec.output_scale else x


def _both_branches(
    tape: Tape,
    spec: LayerSpec,
    x: Array,
    batch: MicroBatch,
    kernels: Kernels,
    division: Division,
    around: Around | None,
    normed: Callable[[Array, bool], Array],
) -> Array:
    """A parallel MLP and the experts, each between its norms; the router reads the residual stream."""
    assert spec.parallel_mlp is not None and isinstance(spec.feed_forward, MixtureOfExpertsSpec)
    dense = normed(gated_mlp(tape, spec.parallel_mlp, normed(x, True), batch.tokens), True)
    flat = reshape(tape, x)
    mixture = spec.feed_forward
    routed = routed_tokens(tape, mixture, normed(flat, True), flat, batch.tokens, kernels, division, around)
    return add(tape, dense, normed(reshape(tape, routed), True))


def _feed_forward(
    tape: Tape,
    spec: LayerSpec,
    x: Array,
    batch: MicroBatch,
    kernels: Kernels,
    division: Division,
    around: Around | None,
) -> Array:
    whole = whole_input(tape, x, batch, division)
    if isinstance(spec.feed_forward, GatedMLPSpec):
        out = gated_mlp(tape, spec.feed_forward, whole, batch.tokens, division)
    elif isinstance(spec.feed_forward, MLPSpec):
        out = plain_mlp(tape, spec.feed_forward, whole, batch.tokens, division)
    else:
        out = mixture_of_experts(tape, spec.feed_forward, whole, batch.tokens, kernels, division, around)
    return sum_of_parts(tape, out, batch, division)
