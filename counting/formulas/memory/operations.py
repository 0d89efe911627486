"""What each operation allocates, what it keeps, and what its backward allocates in return, in the order of torch.

What backward needs: a product keeps its factors, each for the other's gradient; an activation keeps its input;
sigmoid, tanh and softmax keep their output; a gather keeps its indices; sums, scalings and views keep nothing. The
derivatives are those of tools/autograd/derivatives.yaml in torch's source; the order of birth within one, which can
decide a peak, is that of its generated code.
"""

from counting.formulas.memory.tape import (
    BOOL,
    SINGLE,
    Array,
    Gradients,
    InputGradients,
    Leaf,
    Size,
    Storage,
    Tape,
    TooLarge,
)

Operand = Array | Leaf


def first(gradients: Gradients) -> Array:
    """The gradient of the first output."""
    gradient = gradients[0]
    assert gradient is not None
    return gradient


# --- Products --------------------------------------------------------------------------------------------------


def linear(
    tape: Tape,
    x: Array,
    tokens: int,
    outputs: int,
    *,
    weight: Operand | None = None,
    bias: Operand | None = None,
    flat: bool = False,
) -> Array:
    """Rows of `x`, one a token, times a matrix; a weight of its own unless one is given.

    Without a bias the weight's gradient is born first, with one the input's. The weight's is a view, of a transposed
    one; so is the input's, of rows folded from batch and sequence, unless these are `flat` anyway.
    """
    if weight is None:
        weight = tape.parameter(x.numel // tokens * outputs, x.size.width)
    sizes = x.size, weight.size, None if bias is None else bias.size
    out = tape.new(tokens * outputs, x.size.width)

    def derive(gradients: Gradients) -> InputGradients:
        of_x, of_weight, of_bias = sizes
        bias_gradient = None
        if of_bias is None:
            weight_gradient, x_gradient = tape.like(of_weight), tape.like(of_x)
        else:
            x_gradient, weight_gradient = tape.like(of_x), tape.like(of_weight)
            bias_gradient = TooLarge(first(gradients).again(), of_bias)
        return [x_gradient if flat else x_gradient.view(), weight_gradient.view(), bias_gradient]

    tape.record([out], [x, weight, bias], [x, *([weight] if isinstance(weight, Array) else [])], derive)
    return out


def grouped_linear(tape: Tape, rows: Array, count: int, outputs: int, experts: int, ends: Array) -> Array:
    """Each of `count` rows times the matrix of its expert; `ends` say where one expert's rows end."""
    weight = tape.parameter(experts * (rows.numel // count) * outputs, rows.size.width)
    of_rows, of_weight = rows.size, weight.size
    out = tape.new(count * outputs, rows.size.width)

    def derive(gradients: Gradients) -> InputGradients:
        weight_gradient = tape.like(of_weight)
        return [tape.like(of_rows), weight_gradient]

    tape.record([out], [rows, weight], [rows, ends], derive)
    return out


def batched_product(tape: Tape, left: Array, right: Array, outputs: int) -> Array:
    """A product of two activations; the right one's gradient is born first."""
    of_left, of_right = left.size, right.size
    out = tape.new(outputs, left.size.width)

    def derive(gradients: Gradients) -> InputGradients:
        right_gradient = tape.like(of_right)
        return [tape.like(of_left), right_gradient]

    tape.record([out], [left, right], [left, right], derive)
    return out


# --- Elementwise arithmetic ------------------------------------------------------------------------------------


def multiply(tape: Tape, x: Array, factor: Operand, *, vector: bool = False) -> Array:
    """Number by number; a smaller factor is repeated, and its gradient summed up once both have been born.

    So is that of a `vector`, which has fewer dimensions, even where there is but one row to repeat it for.
    """
    whole, of_factor = x.size, factor.size
    out = tape.like(whole)

    def derive(gradients: Gradients) -> InputGradients:
        x_gradient, factor_gradient = tape.like(whole), tape.like(whole)
        if vector or of_factor.numel < whole.numel:
            return [x_gradient, TooLarge(factor_gradient, of_factor)]
        return [x_gradient, factor_gradient]

    tape.record([out], [x, factor], [x, *([factor] if isinstance(factor, Array) else [])], derive)
    return out


def divide(tape: Tape, x: Array, divisor: Array) -> Array:
    """Number by number, a smaller divisor repeated; its gradient is -gradient * ((x / divisor) / divisor)."""
    whole, of_divisor = x.size, divisor.size
    out = tape.like(whole)

    def derive(gradients: Gradients) -> InputGradients:
        quotient = tape.like(whole)
        again, negative = tape.like(whole), tape.like(whole)
        divisor_gradient = tape.like(whole)
        del quotient, again, negative
        x_gradient = tape.like(whole)
        if of_divisor.numel < whole.numel:
            return [x_gradient, TooLarge(divisor_gradient, of_divisor)]
        return [x_gradient, divisor_gradient]

    tape.record([out], [x, divisor], [x, divisor], derive)
    return out


def unary(tape: Tape, x: Operand, *, keeps_input: bool = False, keeps_output: bool = False) -> Array:
    """An operation on each number by itself, and as much again for its gradient."""
    size = x.size
    out = tape.like(size)
    kept = [y for y, needed in ((x, keeps_input), (out, keeps_output)) if needed and isinstance(y, Array)]
    tape.record([out], [x], kept, lambda gradients: [tape.like(size)])
    return out


def scale(tape: Tape, x: Array) -> Array:
    """Times, or divided by, what has no gradient: a number, or a table that lives on anyway."""
    return unary(tape, x)


def add(tape: Tape, left: Array, right: Array) -> Array:
    """The sum of two of one size; both get the gradient itself."""
    out = tape.like(left.size)

    def derive(gradients: Gradients) -> InputGradients:
        return [first(gradients).again(), first(gradients).again()]

    tape.record([out], [left, right], [], derive)
    return out


def subtract(tape: Tape, left: Array, right: Array) -> Array:
    """The difference of two of one size."""
    out = tape.like(left.size)

    def derive(gradients: Gradients) -> InputGradients:
        return [first(gradients).again(), tape.like(first(gradients).size)]

    tape.record([out], [left, right], [], derive)
    return out


def add_number(tape: Tape, x: Operand) -> Array:
    """Plus a number."""
    out = tape.like(x.size)
    tape.record([out], [x], [], lambda gradients: [first(gradients).again()])
    return out


def cast(tape: Tape, x: Array, width: int) -> Array:
    """In another format; the same tensor where it has that already."""
    if x.size.width == width:
        return x
    size = x.size
    out = tape.new(size.numel, width)
    tape.record([out], [x], [], lambda gradients: [tape.like(size)])
    return out


def cast_parameter(tape: Tape, parameter: Leaf, width: int) -> Operand:
    """The same of a weight."""
    if parameter.size.width == width:
        return parameter
    size = parameter.size
    out = tape.new(size.numel, width)
    tape.record([out], [parameter], [], lambda gradients: [tape.like(size)])
    return out


def clamp(tape: Tape, x: Array, *, bounds: int) -> Array:
    """Between bounds, one or two: a comparison with each, and a zero to put where they were passed."""
    size = x.size
    out = tape.like(size)

    def derive(gradients: Gradients) -> InputGradients:
        zero = tape.new(1, size.width)
        compared = [tape.new(size.numel, BOOL) for _ in range(bounds)]
        gradient = tape.like(size)
        del zero, compared
        return [gradient]

    tape.record([out], [x], [x], derive)
    return out


# --- Sums over rows --------------------------------------------------------------------------------------------


def mean_of_rows(tape: Tape, x: Array, rows: int) -> Array:
    """One number a row; its gradient is spread over the row."""
    size = x.size
    out = tape.new(rows, size.width)
    tape.record([out], [x], [], lambda gradients: [tape.like(size)])
    return out


def sum_of_rows(tape: Tape, x: Array, rows: int) -> Array:
    """One number a row; its gradient is a view that repeats it."""
    numel = x.numel
    out = tape.new(rows, x.size.width)
    tape.record([out], [x], [], lambda gradients: [first(gradients).view(numel)])
    return out


def square(tape: Tape, x: Array) -> Array:
    """x^2, whose gradient is gradient * (2 * x^1): three tensors."""
    size = x.size
    out = tape.like(size)

    def derive(gradients: Gradients) -> InputGradients:
        power = tape.like(size)
        doubled = tape.like(size)
        gradient = tape.like(size)
        del power, doubled
        return [gradient]

    tape.record([out], [x], [x], derive)
    return out


def inverse_root(tape: Tape, x: Array) -> Array:
    """1 / sqrt(x), whose gradient is (-1/2 gradient) * result^3: three tensors."""
    size = x.size
    out = tape.like(size)

    def derive(gradients: Gradients) -> InputGradients:
        power = tape.like(size)
        halved = tape.like(size)
        gradient = tape.like(size)
        del power, halved
        return [gradient]

    tape.record([out], [x], [out], derive)
    return out


# --- Parts, copies and rows of tensors -------------------------------------------------------------------------


def split(tape: Tape, x: Array, *numels: int) -> tuple[Array, ...]:
    """Parts that share its memory; their gradients are joined."""
    size = x.size
    parts = tuple(x.view(numel) for numel in numels)
    tape.record(parts, [x], [], lambda gradients: [tape.like(size)])
    return parts


def every_other(tape: Tape, x: Array) -> Array:
    """Each second number, sharing its memory; its gradient is as large as `x`."""
    size = x.size
    out = x.view(size.numel // 2)
    tape.record([out], [x], [], lambda gradients: [tape.like(size)])
    return out


def without_last(tape: Tape, x: Array, numel: int) -> Array:
    """The first `numel` numbers, sharing its memory; the gradient is as large as `x`."""
    size = x.size
    out = x.view(numel)
    tape.record([out], [x], [], lambda gradients: [tape.like(size)])
    return out


def join(tape: Tape, *parts: Array) -> Array:
    """One tensor of several; their gradients are parts of its own."""
    numels = [part.numel for part in parts]
    out = tape.new(sum(numels), parts[0].size.width)
    tape.record([out], parts, [], lambda gradients: [first(gradients).view(numel) for numel in numels])
    return out


def reshape(tape: Tape, x: Array) -> Array:
    """Another shape, sharing its memory; so does the gradient."""
    out = x.view()
    tape.record([out], [x], [], lambda gradients: [first(gradients).view()])
    return out


def reordered(tape: Tape, x: Array, *, copied: bool) -> Array:
    """Another order of the same numbers, as a view; the gradient comes in that order, and is `copied` into the old."""
    size = x.size
    out = x.view()

    def derive(gradients: Gradients) -> InputGradients:
        return [tape.like(size) if copied else first(gradients).view()]

    tape.record([out], [x], [], derive)
    return out


def copy(tape: Tape, x: Array) -> Array:
    """The same numbers in new memory; the gradient needs none."""
    out = tape.like(x.size)
    tape.record([out], [x], [], lambda gradients: [first(gradients).view()])
    return out


def repeat_view(tape: Tape, x: Operand, times: int) -> Array:
    """`x` repeated without memory; the gradients are summed up."""
    size = x.size
    if isinstance(x, Leaf):  # a view of a weight, whose memory is counted elsewhere
        out = Array(Size(size.numel * times, size.width), Storage(tape, 0))
    else:
        out = x.view(size.numel * times)
    copied = times > 1 or isinstance(x, Leaf)  # a single part of a larger gradient is copied for a weight
    tape.record([out], [x], [], lambda gradients: [tape.like(size) if copied else first(gradients).view()])
    return out


def repeat(tape: Tape, x: Array, times: int) -> Array:
    """`x` repeated in memory; the gradients are summed up."""
    size = x.size
    out = tape.new(size.numel * times, size.width)
    tape.record([out], [x], [], lambda gradients: [tape.like(size)])
    return out


def rows_of(tape: Tape, x: Operand, indices: Array, numel: int) -> Array:
    """Chosen rows; the gradients are added into zeros, out of place."""
    size = x.size
    out = tape.new(numel, size.width)

    def derive(gradients: Gradients) -> InputGradients:
        zeros = tape.like(size)
        gradient = tape.like(size)
        del zeros
        return [gradient]

    tape.record([out], [x], [indices], derive)
    return out


def softmax(tape: Tape, x: Array) -> Array:
    """In fp32, whatever the format of `x`."""
    return unary(tape, cast(tape, x, SINGLE), keeps_output=True)
