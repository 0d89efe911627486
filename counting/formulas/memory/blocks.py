"""Operations that every family uses: RMSNorm and the gated MLP."""

from counting.formulas.local.shapes import UNDIVIDED, Division
from counting.formulas.memory.operations import (
    Operand,
    add_number,
    cast,
    cast_parameter,
    inverse_root,
    linear,
    mean_of_rows,
    multiply,
    square,
    unary,
)
from counting.formulas.memory.parameters import added_bias, own_parameter, summed_parameter
from counting.formulas.memory.tape import SINGLE, Array, Gradients, InputGradients, Leaf, Tape
from torch_models.spec import GatedMLPSpec, Kernels


def norm(
    tape: Tape,
    x: Array,
    rows: int,
    kernels: Kernels,
    *,
    gaps: bool = False,
    unit_offset: bool = False,
    division: Division = UNDIVIDED,
    summed: bool = True,
) -> Array:
    """RMSNorm of each row; with `gaps` the rows are slices of longer rows, and the fused kernel copies them.

    Under a `division` each rank has a term of the weight's gradient, from other rows or from other heads, if `summed`;
    else all ranks have the same rows.
    """
    parameter = summed_parameter if summed else own_parameter
    weight = parameter(tape, tape.parameter(x.numel // rows, x.size.width), division)
    if kernels == "fused":
        return _fused(tape, x, add_number(tape, weight) if unit_offset else weight, rows, gaps=gaps)
    x_fp32 = cast(tape, x, SINGLE)
    inverse_rms = inverse_root(tape, add_number(tape, mean_of_rows(tape, square(tape, x_fp32), rows)))
    if unit_offset:
        return cast(
            tape,
            multiply(
                tape,
                multiply(tape, x_fp32, inverse_rms),
                add_number(tape, cast_parameter(tape, weight, SINGLE)),
                vector=True,
            ),
            x.size.width,
        )
    normed = cast(tape, multiply(tape, x_fp32, inverse_rms), x.size.width)
    return multiply(tape, normed, weight, vector=True)


def _fused(tape: Tape, x: Array, weight: Operand, rows: int, *, gaps: bool) -> Array:
    """One kernel that keeps its input and 1 / rms of each row."""
    of_x, of_weight = x.size, weight.size
    inverse_rms = tape.new(rows, SINGLE)

    def without_gaps() -> Array | None:
        return tape.like(of_x) if gaps else None

    copied = without_gaps()
    out = tape.like(of_x)
    del copied

    def derive(gradients: Gradients) -> InputGradients:
        copied = without_gaps()
        x_gradient = tape.like(of_x)
        del copied
        return [x_gradient, tape.like(of_weight)]

    kept = [x, inverse_rms, *([weight] if isinstance(weight, Array) else [])]
    tape.record([out], [x, weight], kept, derive)
    return out


def gated_mlp(tape: Tape, spec: GatedMLPSpec, x: Array, tokens: int, division: Division = UNDIVIDED) -> Array:
    """gate, activation, up, the product of activation and up, down; `spec` is the part of this rank."""

    def project(x: Array, outputs: int) -> Array:
        return linear(tape, x, tokens, outputs, bias=bias(outputs) if spec.bias else None)

    def bias(outputs: int) -> Leaf:
        return tape.parameter(outputs, x.size.width)

    hidden = multiply(
        tape,
        unary(tape, project(x, spec.intermediate_size), keeps_input=True),
        project(x, spec.intermediate_size),
    )
    width = spec.hidden_size
    of_sum = added_bias(tape, bias(width), division) if spec.bias else None
    return linear(tape, hidden, tokens, width, bias=of_sum)
