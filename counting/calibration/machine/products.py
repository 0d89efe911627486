"""Matrix products: the best of square ones, the mix of a training step, and those of experts."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from counting.calibration.found import FoundGrouped, FoundProducts
from counting.calibration.machine.clock import seconds_of, synchronize, time_calls

_SMALLEST_SIDE, _LARGEST_SIDE = 256, 16384
_LONGEST_CALL = 0.02  # share of the time given: a size whose call takes longer is the last one
_WIDTHS = (1, 3)  # of a layer's products relative to the hidden size: attention's, and an MLP's
_EXPERTS = 8
MEASURED_TOKENS_PER_EXPERT = (128, 512, 2048, 8192)
LARGEST_EXPERT = 2048  # hidden and intermediate size of an expert


@dataclass(frozen=True)
class MatrixProduct:
    """(rows, summed) x (summed, columns)."""

    left: torch.Tensor
    right: torch.Tensor

    @property
    def flops(self) -> int:
        """Two for each multiply-add."""
        rows, summed = self.left.shape
        return 2 * rows * summed * self.right.shape[1]

    def __call__(self) -> torch.Tensor:
        """The product, in memory of its own, as in a step."""
        return self.left @ self.right


def measure_products(
    device: torch.device, dtype: torch.dtype, seconds: float, show: Callable[[str], None]
) -> FoundProducts:
    """Rates of products: best of all sizes, and sustained by a training step's mix in a row.

    Sides double until a call takes `_LONGEST_CALL` of `seconds`, half of which they take; best is the fastest timing
    of all. The mix has the layouts in memory of forward pass, gradient of inputs and gradient of weights, at the
    largest side: rows = hidden size, columns by `_WIDTHS`. It runs for the other half without a pause, as a step does,
    so that a device which slows down when it is warm has done so; sustained is that of the median round.
    """
    best, best_shape, side = 0.0, (0, 0, 0), _SMALLEST_SIDE
    for side in _sides(device, dtype, seconds):
        show(f"measuring products in {dtype_name(dtype)}, {side} x {side} ...")
        product = MatrixProduct(_drawn(side, side, device, dtype), _drawn(side, side, device, dtype))
        fastest = time_calls(product, device, seconds / 20).fastest
        if product.flops / fastest > best:
            best, best_shape = product.flops / fastest, (side, side, side)
    show(f"measuring products in {dtype_name(dtype)}, those of a step in a row ...")
    mix = [product for width in _WIDTHS for product in _step_products(side, width * side, device, dtype)]
    rounds = _rounds(mix, device, seconds / 2)
    sustained = sum(product.flops for product in mix) / sorted(rounds)[len(rounds) // 2]
    if sustained > best:  # a wide product is faster than every square one
        best, best_shape = sustained, (side, side, max(_WIDTHS) * side)
    return FoundProducts(
        best_tflop_per_s=best / 1e12,
        sustained_tflop_per_s=sustained / 1e12,
        best_shape=best_shape,
        sustained_shape=(side, side, max(_WIDTHS) * side),
    )


def _sides(device: torch.device, dtype: torch.dtype, seconds: float) -> Iterator[int]:
    """Sides of squares, doubling; the last is the first whose call takes too long."""
    side = _SMALLEST_SIDE
    while True:
        yield side
        product = MatrixProduct(_drawn(side, side, device, dtype), _drawn(side, side, device, dtype))
        if side >= _LARGEST_SIDE or 8 * seconds_of(product, device) > _LONGEST_CALL * seconds:
            return
        side *= 2


def _step_products(hidden: int, width: int, device: torch.device, dtype: torch.dtype) -> Iterator[MatrixProduct]:
    """Forward x W^T, the gradient of the inputs g W, and that of the weights g^T x, of a layer (hidden -> width)."""
    inputs, weight = _drawn(hidden, hidden, device, dtype), _drawn(width, hidden, device, dtype)
    gradient = _drawn(hidden, width, device, dtype)
    yield MatrixProduct(inputs, weight.t())
    yield MatrixProduct(gradient, weight)
    yield MatrixProduct(gradient.t(), inputs)


def _rounds(mix: Sequence[MatrixProduct], device: torch.device, seconds: float) -> list[float]:
    """Seconds of each round of the mix, for about `seconds`, at least three."""
    until = time.perf_counter() + seconds
    rounds: list[float] = []
    for product in mix:
        product()
    synchronize(device)
    while len(rounds) < 3 or time.perf_counter() < until:
        start = time.perf_counter()
        for product in mix:
            product()
        synchronize(device)
        rounds.append(time.perf_counter() - start)
    return rounds


def measure_grouped(
    device: torch.device, dtype: torch.dtype, seconds: float, products: FoundProducts
) -> tuple[FoundGrouped, ...]:
    """Rates of products of `_EXPERTS` experts with as many tokens each, forward and both gradients together.

    Sizes are as large as the products that were measured; numbers of tokens whose call takes too long are left out.
    """
    side = min(products.sustained_shape[0], LARGEST_EXPERT)
    found: list[FoundGrouped] = []
    weight = torch.randn(_EXPERTS, side, side, device=device, dtype=dtype, requires_grad=True)
    for tokens in MEASURED_TOKENS_PER_EXPERT:
        flops = 3 * 2 * _EXPERTS * tokens * side * side
        if found and flops / (1e12 * found[-1].tflop_per_s) > seconds / 10:
            break
        rows = _drawn(_EXPERTS * tokens, side, device, dtype).requires_grad_()
        ends = torch.arange(tokens, _EXPERTS * tokens + 1, tokens, dtype=torch.int32, device=device)
        gradient = torch.ones(_EXPERTS * tokens, side, device=device, dtype=dtype)

        def step(rows: torch.Tensor = rows, ends: torch.Tensor = ends, gradient: torch.Tensor = gradient) -> object:
            out = F.grouped_mm(rows, weight, offs=ends)
            return torch.autograd.grad(out, (rows, weight), gradient)

        timed = time_calls(step, device, seconds / len(MEASURED_TOKENS_PER_EXPERT))
        found.append(FoundGrouped(tokens_per_expert=tokens, tflop_per_s=flops / timed.median / 1e12))
    return tuple(found)


def _drawn(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Normally distributed: a device that draws less power on zeros would be faster with them."""
    return torch.randn(rows, columns, device=device, dtype=dtype)


def dtype_name(dtype: torch.dtype) -> str:
    """Torch's name without the package: "bfloat16"."""
    return str(dtype).removeprefix("torch.")
