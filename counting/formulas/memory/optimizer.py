"""Bytes of the temporary tensors between backward and the next step: gradient clipping and the optimiser's update.

With master weights, parameters are updated one by one: each 16-bit gradient is converted to fp32, updated, and freed.
Otherwise one optimiser updates all parameters. The order and the lifetimes of tensors are those of the Python code of
torch.optim; a fused kernel allocates nothing.
"""

from collections.abc import Sequence

from counting.formulas.memory.tape import HALF, Array, Size, Tape
from counting.formulas.tensors import tensors, tensors_after_layers, tensors_before_layers, tensors_of_mtp
from counting.recipes import Optimizer, Precision, TrainedTensor
from counting.setup import Setup
from torch_models.spec import ModelSpec

NEWTON_SCHULZ_STEPS = 5  # torch's default


def simulate_clipping(spec: ModelSpec, setup: Setup) -> int:
    """Return the peak of scaling all gradients to a total norm: a norm for each tensor, and a copy of all of these.

    Pascanu et al. 2013 (arXiv 1211.5063), algorithm 1, as `torch.nn.utils.clip_grad_norm_` computes it with one call
    for all tensors, the default on CUDA.
    """
    assert setup.mtp is not None, "a resolved setup"
    number = len(tensors_before_layers(spec)) + len(_end(spec, setup))
    number += sum(len(tensors(layer)) * count for layer, count in spec.layer_groups())
    width = setup.precision_recipe.gradient_bytes
    tape = Tape(grad=False)
    norms = tape.new(number, width)  # a number in a tensor of its own for each gradient
    stacked = tape.new(number, width)
    total = tape.new(1, width)
    del norms, stacked
    above_zero = tape.new(1, width)
    inverse = tape.new(1, width)
    coefficient = tape.new(1, width)
    del total, above_zero, inverse, coefficient
    return tape.peak


def simulate_update(spec: ModelSpec, setup: Setup) -> int:
    """Return the peak of the update of all parameters."""
    assert setup.mtp is not None, "a resolved setup"
    precision, optimizer = setup.precision_recipe, setup.optimizer_recipe
    start, end = tensors_before_layers(spec), _end(spec, setup)
    if optimizer.all_at_once:
        layers = sum(_peak(tensors(layer), precision, optimizer) * count for layer, count in spec.layer_groups())
        return layers + _peak([*start, *end], precision, optimizer)
    first, last = spec.layer_runs[0].layer, spec.layer_runs[-1].layer
    neighbours = {(run.layer, run.layer) for run in spec.layer_runs if run.count > 1}
    neighbours |= {(run.layer, after.layer) for run, after in zip(spec.layer_runs, spec.layer_runs[1:], strict=False)}
    rows = [[*tensors(layer), *tensors(after)] for layer, after in neighbours]
    rows += [[*start, *tensors(first)], [*tensors(last), *end]]
    return max(_peak(row, precision, optimizer) for row in rows)


def _end(spec: ModelSpec, setup: Setup) -> list[TrainedTensor]:
    """What is updated after the layers of the main model."""
    return [*(tensors_of_mtp(spec) if setup.mtp else []), *tensors_after_layers(spec)]


def _peak(row: Sequence[TrainedTensor], precision: Precision, optimizer: Optimizer) -> int:
    """The peak of updating tensors in turn."""
    width = precision.master_bytes or precision.weight_bytes
    converts = bool(precision.master_bytes) and not precision.gradients_apart
    parts = [row] if optimizer.all_at_once or not precision.master_bytes else [[tensor] for tensor in row]
    tape = Tape(grad=False)
    for part in parts:
        views = [_of_one_expert(tensor) if optimizer.other_moments else tensor for tensor in part]
        gradients = [tape.new(view.numel, width) for view in views] if converts else []
        _update(tape, views, width, optimizer)
        del gradients
    return tape.peak


def _of_one_expert(tensor: TrainedTensor) -> TrainedTensor:
    """The matrix of one expert, where each is updated apart."""
    is_stack = tensor.stacked and tensor.role == "matrix"
    return TrainedTensor(tensor.shape[1:], tensor.role) if is_stack else tensor


def _update(tape: Tape, row: Sequence[TrainedTensor], width: int, optimizer: Optimizer) -> None:
    if optimizer.moments == "rows_and_columns":
        _adafactor(tape, row, width)
    elif optimizer.other_moments:
        for matrix in row:
            if matrix.role == "matrix":
                _muon(tape, matrix, width)
    elif optimizer.all_at_once:
        tape.born(*(Size(tensor.numel, width) for tensor in row))  # roots of the second moments


def _adafactor(tape: Tape, row: Sequence[TrainedTensor], width: int) -> None:
    """Means of the squared gradient by row and by column, and their product: a tensor as large as the parameter.

    Shazeer & Stern 2018 (arXiv 1804.04235), algorithm 4, as torch's loop computes it. Of a vector: the squared
    gradient, and a copy of its moment. All of them are alive until the same are computed for another tensor.
    """
    row_means = column_means = estimate = update = squared = None
    for tensor in row:
        tape.new(1, width)  # the parameter's norm
        if len(tensor.shape) > 1:
            rows, columns = tensor.shape[-2:]
            matrices = tensor.numel // (rows * columns)
            row_means = tape.new(matrices * rows, width)
            column_means = tape.new(matrices * columns, width)
            estimate = tape.new(tensor.numel, width)
            tape.new(matrices, width)  # the mean of the row moments
        else:
            squared = tape.new(tensor.numel, width)
            estimate = tape.new(tensor.numel, width)
        update = estimate.again()
        tape.new(1, width)  # its norm
    del row_means, column_means, estimate, update, squared


def _muon(tape: Tape, matrix: TrainedTensor, width: int) -> None:
    """The gradient with momentum, and its orthogonalisation in 16 bits (Jordan et al. 2024), on the shorter side.

    Each step computes X X^T, a polynomial of it, and its product with X.
    """
    shorter = min(matrix.shape)
    momentum = tape.new(matrix.numel, width)
    x = momentum.again() if width == HALF else tape.new(matrix.numel, HALF)
    norm = tape.new(1, HALF)
    bounded = tape.new(1, HALF)
    del norm, bounded
    square: Array | None = None
    polynomial: Array | None = None
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = tape.new(shorter * shorter, HALF)
        polynomial = tape.new(shorter * shorter, HALF)
        x = tape.new(matrix.numel, HALF)
    del square, polynomial, momentum, x
