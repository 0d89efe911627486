"""Parameters of a module whose parts the ranks of tensor parallelism have, as the module computes with them.

A module computes with plain tensors that are views of its parameters. They are made when the module is called, so the
gradient of a parameter is complete only after backward has passed all operations of the module.
"""

from counting.formulas.local.shapes import Division
from counting.formulas.memory.operations import Operand, first
from counting.formulas.memory.tape import Array, Derive, Leaf, Storage, Tape


def own_parameter(tape: Tape, parameter: Leaf, division: Division) -> Operand:
    """A parameter of which this rank of tp has a part, or whose gradient is equal on all ranks."""
    return _view(tape, parameter, division.tp, lambda gradients: [first(gradients).view()])


def own_experts(tape: Tape, parameter: Leaf, division: Division) -> Operand:
    """A stack of experts: of this rank's columns of each under tp, of this rank's experts under ep."""
    return _view(tape, parameter, division.tp * division.ep, lambda gradients: [first(gradients).view()])


def summed_parameter(tape: Tape, parameter: Leaf, division: Division) -> Operand:
    """A parameter that each rank of tp has whole, and whose gradient is summed over the ranks."""
    size = parameter.size
    return _view(tape, parameter, division.tp, lambda gradients: [tape.like(size)])


def added_bias(tape: Tape, bias: Leaf, division: Division) -> Operand:
    """The bias of a sum over the ranks of tp: each rank adds an equal share, and its gradient is that of the bias."""
    if division.tp == 1:
        return bias
    out = tape.like(bias.size)
    tape.record([out], [bias], [], lambda gradients: [first(gradients).view()])
    return out


def _view(tape: Tape, parameter: Leaf, ranks: int, derive: Derive) -> Operand:
    if ranks == 1:
        return parameter
    out = Array(parameter.size, Storage(tape, 0))  # the memory of a parameter is counted elsewhere
    tape.record([out], [parameter], [], derive)
    return out
