"""Collectives of tensor parallelism, as torch's DTensor runs them: the buffers that they allocate.

A collective over ranks joins or divides the first dimension only. Between the gathered ranks and the positions of B
sequences there is a copy, which is a view for one sequence when they are gathered, and always a copy before they are
reduced and scattered (torch/distributed/_functional_collectives.py). The gradient of a gather is a reduce-scatter and
the reverse (Korthikanti et al. 2022, arXiv 2205.05198, fig. 5-6).
"""

from counting.formulas.local.shapes import Division
from counting.formulas.memory.operations import OTHER, first
from counting.formulas.memory.tape import Array, Gradients, InputGradients, Size, Tape
from counting.setup import MicroBatch


def _gathered(tape: Tape, size: Size, ranks: int, sequences: int) -> Array:
    """All ranks' parts, each of `size`."""
    buffer = tape.new(size.numel * ranks, size.width)
    return tape.like(buffer.size) if sequences > 1 else buffer


def _reduced(tape: Tape, x: Array, ranks: int) -> Array:
    """This rank's part of the sum of `x` over ranks."""
    by_rank = tape.like(x.size)
    (out,) = tape.born_of(OTHER, Size(x.numel // ranks, x.size.width))
    del by_rank
    return out


def gather(tape: Tape, x: Array, ranks: int, sequences: int) -> Array:
    """Gather the positions of all ranks."""
    size = x.size
    out = _gathered(tape, size, ranks, sequences)

    def derive(gradients: Gradients) -> InputGradients:
        return [_reduced(tape, first(gradients), ranks)]

    tape.record([out], [x], [], derive)
    return out


def reduce_scatter(tape: Tape, x: Array, ranks: int, sequences: int) -> Array:
    """Sum over ranks; each keeps its positions."""
    out = _reduced(tape, x, ranks)

    def derive(gradients: Gradients) -> InputGradients:
        return [_gathered(tape, first(gradients).size, ranks, sequences)]

    tape.record([out], [x], [], derive)
    return out


def all_reduce(tape: Tape, x: Array) -> Array:
    """Sum over ranks; each has the whole sum, and its gradient is that of each term."""
    out = tape.like(x.size)
    tape.record([out], [x], [], lambda gradients: [first(gradients).view()])
    return out


def shared_input(tape: Tape, x: Array) -> Array:
    """The input of all ranks, which each has; its gradient is summed over ranks."""
    out = x.view()

    def derive(gradients: Gradients) -> InputGradients:
        return [tape.like(first(gradients).size)]

    tape.record([out], [x], [], derive)
    return out


def whole_input(tape: Tape, x: Array, batch: MicroBatch, division: Division) -> Array:
    """The input of a block that is divided over the ranks of tp, with all positions."""
    if division.tp == 1:
        return x
    if division.sequence_parallel:
        return gather(tape, x, division.tp, batch.sequences)
    return shared_input(tape, x)


def sum_of_parts(tape: Tape, x: Array, batch: MicroBatch, division: Division) -> Array:
    """The output of a block that is divided over the ranks of tp, with the positions of the residual stream."""
    if division.tp == 1:
        return x
    if division.sequence_parallel:
        return reduce_scatter(tape, x, division.tp, batch.sequences)
    return all_reduce(tape, x)
