"""Operations that several families use: norms, projections and MLPs."""

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
from counting.formulas.memory.tape import SINGLE, Array, Gradients, InputGradients, Size, Tape
from torch_models.spec import GatedMLPSpec, Kernels, LayerSpec, MLPSpec, ModelSpec


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
    has_weight: bool = True,
) -> Array:
    """RMSNorm of each row; with `gaps` the rows are slices of longer rows, and the fused kernel copies them.

    Under a `division` each rank has a term of the weight's gradient, from other rows or from other heads, if `summed`;
    else all ranks have the same rows.
    """
    parameter = summed_parameter if summed else own_parameter
    weight = parameter(tape, tape.parameter(x.numel // rows, x.size.width), division) if has_weight else None
    if kernels == "fused":
        factor = add_number(tape, weight) if unit_offset and weight is not None else weight
        return _fused(tape, x, factor, rows, gaps=gaps)
    x_fp32 = cast(tape, x, SINGLE)
    inverse_rms = inverse_root(tape, add_number(tape, mean_of_rows(tape, square(tape, x_fp32), rows)))
    if weight is None:
        return cast(tape, multiply(tape, x_fp32, inverse_rms), x.size.width)
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


def _fused(tape: Tape, x: Array, weight: Operand | None, rows: int, *, gaps: bool) -> Array:
    """One kernel that keeps its input and 1 / rms of each row."""
    of_x, of_weight = x.size, None if weight is None else weight.size
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
        return [x_gradient, None if of_weight is None else tape.like(of_weight)]

    kept = [x, inverse_rms, *([weight] if isinstance(weight, Array) else [])]
    tape.record([out], [x, weight], kept, derive)
    return out


def layer_norm(tape: Tape, x: Array, rows: int, division: Division = UNDIVIDED, *, summed: bool = True) -> Array:
    """LayerNorm of each row, torch's kernel: it keeps its input, and mean and 1 / deviation of each row in fp32.

    `summed` is as in `norm`.
    """
    parameter = summed_parameter if summed else own_parameter
    weight, bias = (parameter(tape, tape.parameter(x.numel // rows, x.size.width), division) for _ in range(2))
    sizes = x.size, weight.size, bias.size
    out, mean, inverse_deviation = tape.born(x.size, Size(rows, SINGLE), Size(rows, SINGLE))

    def derive(gradients: Gradients) -> InputGradients:
        wanted = [index for index in range(3) if tape.wants(index)]
        found = dict(zip(wanted, tape.born(*(sizes[index] for index in wanted)), strict=True))
        return [found.get(index) for index in range(3)]

    kept = [x, mean, inverse_deviation, *(each for each in (weight, bias) if isinstance(each, Array))]
    tape.record([out], [x, weight, bias], kept, derive)
    return out


def stream_norm(
    tape: Tape, spec: LayerSpec | ModelSpec, x: Array, rows: int, kernels: Kernels, division: Division
) -> Array:
    """A norm of the residual stream, as a layer or a model has them."""
    summed = division.sequence_parallel
    if spec.norm_type == "layer_norm":
        return layer_norm(tape, x, rows, division, summed=summed)
    return norm(tape, x, rows, kernels, unit_offset=spec.norm_unit_offset, division=division, summed=summed)


def divided_norm(tape: Tape, x: Array, rows: int, division: Division) -> Array:
    """RMSNorm over a width that the ranks of tp divide; the sum of squares of each row is summed over ranks in fp32.

    No kernel of torch does it: these are the operations of torch_models/parallel/norm.py. It keeps what the fused norm
    keeps.
    """
    weight = own_parameter(tape, tape.parameter(x.numel // rows, x.size.width), division)
    of_x, of_weight = x.size, weight.size

    def mean() -> Array:
        total = tape.new(rows, SINGLE)
        out = tape.new(rows, SINGLE)
        del total
        return out

    def rounded(wide: Array, size: Size) -> Array:
        return wide if size.width == SINGLE else tape.like(size)

    def forward() -> tuple[Array, Array]:
        squares = tape.new(rows, SINGLE)
        mean_square = mean()
        inverse_rms = tape.new(rows, SINGLE)
        del mean_square
        normed = tape.new(of_x.numel, SINGLE)
        out = rounded(normed, of_x)
        del squares, normed
        return out, inverse_rms

    def derive(gradients: Gradients) -> InputGradients:
        normed = tape.new(of_x.numel, SINGLE)
        weight_gradient = weight_gradient_of()
        wide_weight = None if of_weight.width == SINGLE else tape.new(of_weight.numel, SINGLE)
        scaled = tape.new(of_x.numel, SINGLE)
        del wide_weight
        product = tape.new(of_x.numel, SINGLE)
        sums = tape.new(rows, SINGLE)
        del product
        mean_product = mean()
        del sums
        x_gradient = rounded(scaled, of_x)
        del normed, scaled, mean_product
        return [x_gradient, weight_gradient]

    def weight_gradient_of() -> Array:
        product = tape.new(of_x.numel, SINGLE)
        total = tape.new(of_weight.numel, SINGLE)
        del product
        return rounded(total, of_weight)

    out, inverse_rms = forward()
    tape.record([out], [x, weight], [x, inverse_rms], derive)
    return out


def projection(
    tape: Tape, x: Array, tokens: int, outputs: int, division: Division = UNDIVIDED, *, bias: bool = False
) -> Array:
    """A linear layer; under tp each rank has some of its outputs, and `outputs` are those of this rank."""
    width = x.size.width
    weight = own_parameter(tape, tape.parameter(x.numel // tokens * outputs, width), division)
    of_outputs = own_parameter(tape, tape.parameter(outputs, width), division) if bias else None
    return linear(tape, x, tokens, outputs, weight=weight, bias=of_outputs)


def sum_projection(
    tape: Tape, x: Array, tokens: int, outputs: int, division: Division = UNDIVIDED, *, bias: bool = False
) -> Array:
    """A linear layer; under tp each rank has some of its inputs, and the outputs are the rank's term of a sum."""
    width = x.size.width
    weight = own_parameter(tape, tape.parameter(x.numel // tokens * outputs, width), division)
    of_sum = added_bias(tape, tape.parameter(outputs, width), division) if bias else None
    return linear(tape, x, tokens, outputs, weight=weight, bias=of_sum)


def plain_mlp(tape: Tape, spec: MLPSpec, x: Array, tokens: int, division: Division = UNDIVIDED) -> Array:
    """up, activation, down; `spec` is the part of this rank."""
    up = projection(tape, x, tokens, spec.intermediate_size, division, bias=spec.bias)
    hidden = unary(tape, up, keeps_input=True)
    del up
    return sum_projection(tape, hidden, tokens, spec.hidden_size, division, bias=spec.bias)


def gated_mlp(tape: Tape, spec: GatedMLPSpec, x: Array, tokens: int, division: Division = UNDIVIDED) -> Array:
    """gate, activation, up, the product of activation and up, down; `spec` is the part of this rank."""

    def column(x: Array) -> Array:
        return projection(tape, x, tokens, spec.intermediate_size, division, bias=spec.bias)

    hidden = multiply(tape, unary(tape, column(x), keeps_input=True), column(x))
    return sum_projection(tape, hidden, tokens, spec.hidden_size, division, bias=spec.bias)
