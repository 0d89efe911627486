"""Gradient clipping on a rank: the bytes of the norms, and the sums of their squares over ranks.

`torch.nn.utils.get_total_norm` makes the norm of each tensor that a rank stores, and stacks them. Of DTensors, each
axis of their mesh that divides tensors adds up the squares of the stack: an all-reduce of one number a tensor, between
two more copies of the stack (torch/distributed/tensor/_ops/_math_ops.py, `_NormPartial`). A norm is as wide as the
gradients. Experts that ranks of ep divide are on a mesh, and so in a stack, of their own; stages of a pipeline add up
one number over pp. A tensor that tp does not divide has its norm divided by sqrt(tp) first, so that the sum counts it
once; that is never the moment with most bytes.

Example: Llama-3-8B has 3 + 32 x 9 = 291 tensors. On 8 ranks of fsdp, with gradients in fp32, 4 x 291 = 1,164 bytes are
reduced; norms, stack, squares, their sums and the roots of these are 5 x 1,164 = 5,820 bytes. With tp too the stack is
summed twice, and the roots of the first sums are there beside: 6 x 1,164 = 6,984.
"""

from typing import NamedTuple

from counting.formulas.memory.tape import Array, Tape
from counting.ranks.profile import Axis, Collective, RankStretch, Traffic, Traffics
from counting.step.profile import Stretch
from torch_models.layout import Layout


class Counted(NamedTuple):
    """How many tensors of a rank are in the total norm: experts that ranks of ep divide, and all others."""

    experts: int
    others: int

    def plus(self, number: int, *, experts: bool) -> "Counted":
        """Return these and `number` more, which are experts or not."""
        return Counted(self.experts + number * experts, self.others + number * (not experts))


def clipping_by_formula(counted: Counted, width: int, layout: Layout) -> RankStretch:
    """Return the peak of clipping and what it sends; `width` are the bytes of a number of a gradient."""
    tape, traffic = Tape(grad=False), dict[str, Traffic]()
    of_both = (counted.experts, _axes_of_experts(layout)), (counted.others, _axes(layout))
    meshes = [(number, axes) for number, axes in of_both if number]
    norms = [_norm(tape, number, axes, width, traffic) for number, axes in meshes]
    total = norms[0] if len(norms) == 1 else _norm_of_both(tape, width)
    del norms
    if layout.pp > 1:
        _add(traffic, "pp", width)
    for _ in meshes:
        _scale(tape, width)
    del total
    return RankStretch(memory=Stretch(peak=tape.peak, net=0), traffic=traffic)


def _axes(layout: Layout) -> list[Axis]:
    """The axes that divide tensors of all ranks with different data, and of tp."""
    sizes: tuple[tuple[Axis, int], ...] = ("fsdp", layout.shards), ("tp", layout.tp)
    return [axis for axis, size in sizes if size > 1]


def _axes_of_experts(layout: Layout) -> list[Axis]:
    sizes: tuple[tuple[Axis, int], ...] = ("expert_fsdp", layout.expert_fsdp), ("ep", layout.ep)
    return [axis for axis, size in sizes if size > 1]


def _norm(tape: Tape, number: int, axes: list[Axis], width: int, traffic: Traffics) -> Array:
    """The norm of the tensors of one mesh."""
    norms = tape.new(number, width)  # a number in a tensor of its own for each gradient
    stacked = tape.new(number, width)
    roots: Array | None = None
    for axis in axes:
        squares = tape.new(number, width)
        sums = tape.new(number, width)
        roots = tape.new(number, width)
        del squares, sums
        _add(traffic, axis, number * width)
    total = tape.new(1, width)
    del norms, stacked, roots
    return total


def _norm_of_both(tape: Tape, width: int) -> Array:
    """The root of the sum of two squares, in place of the sum."""
    squares = tape.new(1, width), tape.new(1, width)
    total = tape.new(1, width)
    del squares
    return total


def _scale(tape: Tape, width: int) -> None:
    """The factor of all gradients of a mesh, max_norm / (total + 1e-6) and at most 1; they are scaled in place."""
    above_zero = tape.new(1, width)
    inverse = tape.new(1, width)
    coefficient = tape.new(1, width)
    del above_zero, inverse
    at_most_one = tape.new(1, width)
    del coefficient, at_most_one


def _add(traffic: Traffics, axis: Axis, size: int) -> None:
    traffic[Collective("optimizer", "all_reduce", axis).key] = Traffic(calls=1, bytes_in=size, bytes_out=size)
