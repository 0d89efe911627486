"""Tensors that each operation allocates, keeps for backward, and allocates in backward, in torch's order.

Each function runs one operation on the tape and returns its output. For backward a product keeps its factors, each for
the other's gradient; an activation keeps its input; sigmoid, tanh and softmax keep their output; a gather keeps its
indices; sums, scalings and views keep nothing. The derivatives are those of tools/autograd/derivatives.yaml in torch's
source. The order of allocation within one derivative can change a peak; it is that of the code generated from this
file.
"""

from counting.formulas.memory.tape import (
    BOOL,
    SINGLE,
    Array,
    Gradients,
    InputGradients,
    Kernel,
    Leaf,
    Size,
    Storage,
    Tape,
    TooLarge,
)

Operand = Array | Leaf
OTHER = Kernel("other")


def first(gradients: Gradients) -> Array:
    """Return the gradient of the first output."""
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
    """Multiply rows of `x`, one per token, by a matrix: `weight`, or a new parameter if it is None.

    Backward allocates the weight's gradient first without a bias, and the input's gradient first with one. The weight's
    gradient is a view of a transposed tensor. The input's gradient is a view of rows folded from batch and sequence,
    unless `x` is `flat`, which means that it has no batch dimension. With a bias the rows are folded before the weight
    is transposed, so backward adds the gradients of weight and bias before that of the input.
    """
    if weight is None:
        weight = tape.parameter(x.numel // tokens * outputs, x.size.width)
    sizes = x.size, weight.size, None if bias is None else bias.size
    kernel = Kernel("mm", (x.numel // tokens, outputs)) if bias is None else OTHER
    (out,) = tape.born_of(kernel, Size(tokens * outputs, x.size.width))

    def derive(gradients: Gradients) -> InputGradients:
        of_x, of_weight, of_bias = sizes
        x_first = flat or of_bias is None
        wants_x, wants_weight = (tape.wants(0), tape.wants(1)) if x_first else (tape.wants(2), tape.wants(0))
        weight_gradient = tape.like(of_weight).view() if wants_weight and of_bias is None else None
        x_gradient = tape.like(of_x) if wants_x else None
        if x_gradient is not None and not flat:
            x_gradient = x_gradient.view()
        if of_bias is None:
            return [x_gradient, weight_gradient, None]
        if wants_weight:
            weight_gradient = tape.like(of_weight).view()
        bias_gradient = TooLarge(first(gradients).again(), of_bias)
        if flat:
            return [x_gradient, weight_gradient, bias_gradient]
        return [weight_gradient, bias_gradient, x_gradient]

    inputs = [x, weight, bias] if flat or bias is None else [weight, bias, x]
    tape.record([out], inputs, [x, *([weight] if isinstance(weight, Array) else [])], derive)
    return out


def grouped_linear(tape: Tape, rows: Array, count: int, outputs: int, weight: Operand, ends: Array) -> Array:
    """Multiply each of `count` rows by the matrix of its expert; `ends` contains the end of each expert's rows."""
    of_rows, of_weight = rows.size, weight.size
    out = tape.new(count * outputs, rows.size.width)

    def derive(gradients: Gradients) -> InputGradients:
        weight_gradient = tape.like(of_weight) if tape.wants(1) else None
        return [tape.like(of_rows) if tape.wants(0) else None, weight_gradient]

    tape.record([out], [rows, weight], [rows, ends], derive)
    return out


def batched_product(tape: Tape, left: Array, right: Array, outputs: int) -> Array:
    """Multiply two activations; backward allocates the gradient of `right` first."""
    of_left, of_right = left.size, right.size
    (out,) = tape.born_of(OTHER, Size(outputs, left.size.width))

    def derive(gradients: Gradients) -> InputGradients:
        right_gradient = tape.like(of_right)
        return [tape.like(of_left), right_gradient]

    tape.record([out], [left, right], [left, right], derive)
    return out


# --- Elementwise arithmetic ------------------------------------------------------------------------------------


def multiply(tape: Tape, x: Array, factor: Operand, *, vector: bool = False) -> Array:
    """Multiply elementwise; a smaller factor is broadcast, and its gradient is summed after both are allocated.

    The gradient of a `vector`, a factor with fewer dimensions, is summed even if it is broadcast over one row only.
    """
    whole, of_factor = x.size, factor.size
    out = tape.like(whole)

    def derive(gradients: Gradients) -> InputGradients:
        x_gradient = tape.like(whole) if tape.wants(0) else None
        factor_gradient = tape.like(whole) if tape.wants(1) else None
        if factor_gradient is not None and (vector or of_factor.numel < whole.numel):
            return [x_gradient, TooLarge(factor_gradient, of_factor)]
        return [x_gradient, factor_gradient]

    tape.record([out], [x, factor], [x, *([factor] if isinstance(factor, Array) else [])], derive)
    return out


def divide(tape: Tape, x: Array, divisor: Array) -> Array:
    """Divide elementwise; a smaller divisor is broadcast. Its gradient is -gradient * ((x / divisor) / divisor)."""
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
    """Run an elementwise operation with one input; its gradient has the same size."""
    size = x.size
    out = tape.like(size)
    kept = [y for y, needed in ((x, keeps_input), (out, keeps_output)) if needed and isinstance(y, Array)]
    tape.record([out], [x], kept, lambda gradients: [tape.like(size)])
    return out


def scale(tape: Tape, x: Array) -> Array:
    """Multiply or divide by a factor without gradient: a number, or a table that stays alive in any case."""
    return unary(tape, x)


def scale_by_buffer(tape: Tape, x: Array) -> Array:
    """Multiply by a number that is stored with the model, which backward needs; its memory is counted elsewhere."""
    size, factor = x.size, Array(Size(1, x.size.width), Storage(tape, 0))
    out = tape.like(size)
    tape.record([out], [x], [factor], lambda gradients: [tape.like(size)])
    return out


def add(tape: Tape, left: Array, right: Array) -> Array:
    """Add two tensors of equal size; both receive the output's gradient without a copy."""
    out = tape.like(left.size)

    def derive(gradients: Gradients) -> InputGradients:
        return [first(gradients).again(), first(gradients).again()]

    tape.record([out], [left, right], [], derive)
    return out


def subtract(tape: Tape, left: Array, right: Array) -> Array:
    """Subtract two tensors of equal size; `right` receives a negated copy of the gradient."""
    out = tape.like(left.size)

    def derive(gradients: Gradients) -> InputGradients:
        return [first(gradients).again(), tape.like(first(gradients).size)]

    tape.record([out], [left, right], [], derive)
    return out


def add_number(tape: Tape, x: Operand) -> Array:
    """Add a number."""
    out = tape.like(x.size)
    tape.record([out], [x], [], lambda gradients: [first(gradients).again()])
    return out


def cast(tape: Tape, x: Array, width: int) -> Array:
    """Convert to numbers of `width` bytes; return `x` itself if it has this width."""
    if x.size.width == width:
        return x
    size = x.size
    out = tape.new(size.numel, width)
    tape.record([out], [x], [], lambda gradients: [tape.like(size)])
    return out


def cast_parameter(tape: Tape, parameter: Operand, width: int) -> Operand:
    """Convert a weight to numbers of `width` bytes; return the parameter itself if it has this width."""
    if parameter.size.width == width:
        return parameter
    size = parameter.size
    out = tape.new(size.numel, width)
    tape.record([out], [parameter], [], lambda gradients: [tape.like(size)])
    return out


def clamp(tape: Tape, x: Array, *, bounds: int) -> Array:
    """Clamp to one or two bounds; backward allocates one comparison per bound and a scalar zero."""
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
    """Take the mean of each row; its gradient is a new tensor as large as `x`."""
    size = x.size
    out = tape.new(rows, size.width)
    tape.record([out], [x], [], lambda gradients: [tape.like(size)])
    return out


def sum_of_rows(tape: Tape, x: Array, rows: int) -> Array:
    """Take the sum of each row; its gradient is an expanded view."""
    numel = x.numel
    out = tape.new(rows, x.size.width)
    tape.record([out], [x], [], lambda gradients: [first(gradients).view(numel)])
    return out


def square(tape: Tape, x: Array) -> Array:
    """Compute x^2; its gradient, gradient * (2 * x^1), needs three tensors."""
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
    """Compute 1 / sqrt(x); its gradient, (-1/2 gradient) * result^3, needs three tensors."""
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
    """Split `x` into views; backward joins their gradients in a new tensor."""
    size = x.size
    parts = tuple(x.view(numel) for numel in numels)
    tape.record(parts, [x], [], lambda gradients: [tape.like(size)])
    return parts


def every_other(tape: Tape, x: Array) -> Array:
    """Return a view of every second number; its gradient is as large as `x`."""
    size = x.size
    out = x.view(size.numel // 2)
    tape.record([out], [x], [], lambda gradients: [tape.like(size)])
    return out


def without_last(tape: Tape, x: Array, numel: int) -> Array:
    """Return `x` without its last column, where attention sinks are: a view of `numel` numbers.

    The gradient is a new array as large as `x`.
    """
    size = x.size
    out = x.view(numel)
    tape.record([out], [x], [], lambda gradients: [tape.like(size)])
    return out


def join(tape: Tape, *parts: Array) -> Array:
    """Concatenate tensors; their gradients are views of the output's gradient."""
    numels = [part.numel for part in parts]
    out = tape.new(sum(numels), parts[0].size.width)
    tape.record([out], parts, [], lambda gradients: [first(gradients).view(numel) for numel in numels])
    return out


def reshape(tape: Tape, x: Array) -> Array:
    """Return a view in another shape; its gradient is a view too."""
    out = x.view()
    tape.record([out], [x], [], lambda gradients: [first(gradients).view()])
    return out


def reordered(tape: Tape, x: Array, *, copied: bool) -> Array:
    """Return a view in another order; with `copied`, backward copies the gradient into the old order."""
    size = x.size
    out = x.view()

    def derive(gradients: Gradients) -> InputGradients:
        return [tape.like(size) if copied else first(gradients).view()]

    tape.record([out], [x], [], derive)
    return out


def copy(tape: Tape, x: Array) -> Array:
    """Copy `x` to new memory; its gradient is a view."""
    out = tape.like(x.size)
    tape.record([out], [x], [], lambda gradients: [first(gradients).view()])
    return out


def repeat_view(tape: Tape, x: Operand, times: int) -> Array:
    """Repeat `x` as a view without new memory; backward sums the gradients."""
    size = x.size
    if isinstance(x, Leaf):  # a view of a weight, whose memory is counted elsewhere
        out = Array(Size(size.numel * times, size.width), Storage(tape, 0))
    else:
        out = x.view(size.numel * times)
    # With times == 1 nothing is summed, but a weight gets a copy, unless its gradient is one number, without gaps.
    copied = times > 1 or (isinstance(x, Leaf) and size.numel > 1)
    tape.record([out], [x], [], lambda gradients: [tape.like(size) if copied else first(gradients).view()])
    return out


def repeat(tape: Tape, x: Array, times: int) -> Array:
    """Repeat `x` in new memory; backward sums the gradients."""
    size = x.size
    out = tape.new(size.numel * times, size.width)
    tape.record([out], [x], [], lambda gradients: [tape.like(size)])
    return out


def rows_of(tape: Tape, x: Operand, indices: Array, numel: int) -> Array:
    """Gather rows by `indices`; backward adds the gradients to a tensor of zeros, out of place."""
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
    """Compute the softmax in fp32, whatever the format of `x`."""
    return unary(tape, cast(tape, x, SINGLE), keeps_output=True)
