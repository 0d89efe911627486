"""One decoder layer, operation by operation, and the bytes alive at the worst moment of its forward pass.

Each function runs what one block computes, in the order in which it is computed. For one sequence and the kernels that
torch runs on CUDA. A tensor lives as long as the Python variable, operation or gradient that refers to it, here as in
torch.

Legend: T tokens, D hidden_size, F intermediate_size, E experts, K experts per token, H query heads, G key/value
heads, C channels of a query head.
"""

from functools import partial

from counting.counts import LayerMemory
from counting.formulas.memory.attention import attention
from counting.formulas.memory.blocks import gated_mlp, norm
from counting.formulas.memory.experts import mixture_of_experts
from counting.formulas.memory.operations import add
from counting.formulas.memory.tape import HALF, SINGLE, Array, Edge, Operation, Tape
from counting.formulas.parameters import parameters, router_correction_bias
from torch_models.spec import GatedMLPSpec, Kernels, LayerSpec, Recompute


def simulate_layer(spec: LayerSpec, sequence_length: int, kernels: Kernels, *, grad: bool) -> LayerMemory:
    """Bytes alive at the worst moment of one layer's forward pass over one sequence.

    With `grad` it is the pass that rematerialisation runs, without it the first one.
    """
    tape = Tape(grad=grad)
    rotary = rotary_tables(tape, spec, sequence_length, HALF)
    x = residual_stream(tape, spec, sequence_length, HALF)
    tape.watch()
    out = transform(tape, spec, x, sequence_length, kernels, "none")
    at_peak, boundary = tape.at_peak, x.storage.serial
    shared = {table.storage.serial for table in rotary}
    kept = (tape.alive.keys() | (shared if grad else set())) - {boundary, out.storage.serial}
    kept -= set() if grad else tape.alive.keys()
    saved = sum(size for serial, size in at_peak.items() if serial in kept)
    return LayerMemory(
        weights=HALF * parameters(spec).total + SINGLE * router_correction_bias(spec),
        boundary=at_peak[boundary],
        saved=saved,
        transients=sum(at_peak.values()) - at_peak[boundary] - saved,
    )


def rotary_tables(tape: Tape, spec: LayerSpec, tokens: int, width: int) -> tuple[Array, Array]:
    """cos and sin of half the rotated channels, of every position."""
    half = tokens * spec.attention.rotary.dim // 2
    return tape.new(half, width), tape.new(half, width)


def residual_stream(tape: Tape, spec: LayerSpec, tokens: int, width: int) -> Array:
    """A layer's input, which has a gradient where the tape records."""
    x = tape.new(tokens * spec.hidden_size, width)
    if tape.recording:
        x.edge = Edge(Operation(1, (), (), lambda gradients: []))
    return x


def layer(tape: Tape, spec: LayerSpec, x: Array, tokens: int, kernels: Kernels, recompute: Recompute) -> Array:
    """One layer, of which full recompute keeps the input alone."""
    run = partial(transform, tape, spec, tokens=tokens, kernels=kernels, recompute=recompute)
    return tape.checkpoint(run, x) if recompute == "full" else run(x)


def transform(tape: Tape, spec: LayerSpec, x: Array, tokens: int, kernels: Kernels, recompute: Recompute) -> Array:
    """Attention, then feed-forward, each added to the residual stream, with norms before, after or around."""
    before, after = spec.norm_placement != "after", spec.norm_placement != "before"

    def normed(x: Array, wanted: bool) -> Array:
        return norm(tape, x, tokens, kernels, unit_offset=spec.norm_unit_offset) if wanted else x

    x = add(tape, x, normed(attention(tape, spec.attention, normed(x, before), tokens, kernels, recompute), after))
    return add(tape, x, normed(_feed_forward(tape, spec, normed(x, before), tokens), after))


def _feed_forward(tape: Tape, spec: LayerSpec, x: Array, tokens: int) -> Array:
    if isinstance(spec.feed_forward, GatedMLPSpec):
        return gated_mlp(tape, spec.feed_forward, x, tokens)
    return mixture_of_experts(tape, spec.feed_forward, x, tokens)
