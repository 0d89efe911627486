"""Matrix products: tiles and waves, products of experts, and operands that are quantised to FP8."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import ceil, log2

from msgspec import structs

from counting.cost.step_time.machine import GroupedSpeed, Machine, NumberFormat
from counting.work import Op
from torch_models.errors import UserError

# Below, tiles and waves are counted; the rate of larger products is measured, with what they lose in it.
LARGE_PRODUCT_FLOPS = 1e11
# The part of the result that one multiprocessor computes at a time: the two most efficient tiles of cuBLAS, and the
# square one (NVIDIA, Matrix Multiplication Background User's Guide, "Typical Tile Dimensions In cuBLAS").
TILES = ((256, 128), (128, 256), (128, 128))
FEWEST_SUMMED = 256  # of a part, where the sum is split to occupy more multiprocessors: as deep as a tile is wide
FP8_BYTES = 1
FP8_MULTIPLE = 16  # cuBLAS multiplies FP8 in dimensions of multiples of 16 ("cublasLtMatmul", requirements)


def format_of(dtype: str) -> NumberFormat:
    """The format whose rate products of torch's `dtype` have; float64 counts as float32, which is faster."""
    if dtype.startswith("float8"):
        return "fp8"
    return "16-bit" if dtype in ("bfloat16", "float16") else "fp32"


def product_rate(op: Op, machine: Machine) -> float:
    """FLOP/s of a product, or a batch of them, of shape (batch, rows, summed, columns)."""
    rate = _rate_of(op, machine)
    if op.flops >= LARGE_PRODUCT_FLOPS or machine.multiprocessors is None:
        return rate
    return rate * tile_utilisation(op.shape, machine.multiprocessors)


def tile_utilisation(shape: tuple[int, ...], multiprocessors: int) -> float:
    """The share of the multiprocessors' time that goes into the product: its share of the tiles, and of the waves.

    A tile that reaches over the edge of the result takes as long as a whole one, and so does the last wave if it does
    not occupy all multiprocessors (the same guide, "Dimension Quantization Effects"). If there are fewer tiles than
    multiprocessors, several of these share the sum of one tile (split-K; Osama et al. 2023, arXiv 2301.03598, fig. 2).
    Of `TILES` the best is taken, as the library chooses among kernels.
    """
    batch, rows, summed, columns = shape
    return max(_utilisation(batch, rows, summed, columns, tile, multiprocessors) for tile in TILES)


def _utilisation(
    batch: int, rows: int, summed: int, columns: int, tile: tuple[int, int], multiprocessors: int
) -> float:
    tiles = batch * ceil(rows / tile[0]) * ceil(columns / tile[1])
    parts = min(max(multiprocessors // tiles, 1), max(summed // FEWEST_SUMMED, 1))
    waves = ceil(tiles * parts / multiprocessors)
    computed = waves * multiprocessors * tile[0] * tile[1] / parts
    return batch * rows * columns / computed


def grouped_rate(op: Op, machine: Machine) -> float:
    """FLOP/s of the products of experts, of shape (experts, rows of all, summed, columns).

    By tokens an expert, where that was measured. Of formats in which it was not, it is that of 16 bits, as much faster
    or slower as large products are. Without measured ones a product of experts is a batch of products.
    """
    rate = _rate_of(op, machine)
    if machine.grouped_fp8 and format_of(op.dtype) == "fp8":
        return _grouped_rate_at(machine.grouped_fp8, op)
    if machine.grouped:
        slope = rate / machine.products["16-bit"]
        return min(_grouped_rate_at(machine.grouped, op) * slope, rate)
    if machine.multiprocessors is None:
        return rate
    experts, rows, summed, columns = op.shape
    if _sums_over_tokens(op):
        summed = max(summed // experts, 1)
    else:
        rows = max(rows // experts, 1)
    return rate * tile_utilisation((experts, rows, summed, columns), machine.multiprocessors)


def tokens_per_expert(op: Op) -> float:
    """The rows of an expert, on average: of the input, or summed over in the gradient of the weights."""
    experts, rows, summed, _columns = op.shape
    return (summed if _sums_over_tokens(op) else rows) / experts


def _sums_over_tokens(op: Op) -> bool:
    """Whether the op computes the gradient of the weights: it alone writes a matrix for each expert.

    What is written has 16 bits a number at least: products of FP8 do not write FP8.
    """
    experts, rows, _summed, columns = op.shape
    return experts > 1 and op.bytes_written > rows * columns * max(_bytes_of(op.dtype), 2)


def _grouped_rate_at(grouped: tuple[GroupedSpeed, ...], op: Op) -> float:
    return interpolated_rate([(row.tokens_per_expert, row.flop_per_s) for row in grouped], tokens_per_expert(op))


def interpolated_rate(measured: Sequence[tuple[float, float]], size: float) -> float:
    """FLOP/s at `size`, of (size, FLOP/s) by ascending size, at least one.

    Linear in the size's logarithm between two that were measured, beyond the ends as at the end.
    """
    if size <= measured[0][0]:
        return measured[0][1]
    for (small, low), (large, high) in pairwise(measured):
        if size <= large:
            return low + log2(size / small) / log2(large / small) * (high - low)
    return measured[-1][1]


def with_fp8_products(ops: Iterable[Op], *, is_bound: bool = False) -> tuple[Op, ...]:
    """`ops` whose linear products run in FP8, each behind the kernels that quantise its two operands.

    Those are the products of linear layers and of experts in 16 bits, without a batch and with dimensions of multiples
    of 16. A kernel that quantises reads 16 bits of each number and writes 8, and the product then reads 8: an
    assumption, without the scales and their reductions. Of a bound nothing quantises: what writes the operands may
    write them in FP8.
    """
    found: list[Op] = []
    for op in ops:
        if not _becomes_fp8(op):
            found.append(op)
            continue
        numbers = op.bytes_read // _bytes_of(op.dtype)
        if not is_bound:
            quantised = numbers * FP8_BYTES // 2  # of one of the two operands, on average
            found.append(
                Op(
                    kind="memory",
                    name="quantise",
                    calls=2 * op.calls,
                    bytes_read=op.bytes_read // 2,
                    bytes_written=quantised,
                    dtype=op.dtype,
                )
            )
        found.append(structs.replace(op, dtype="float8_e4m3fn", bytes_read=numbers * FP8_BYTES))
    return tuple(found)


def _becomes_fp8(op: Op) -> bool:
    if op.kind not in ("product", "grouped_product") or format_of(op.dtype) != "16-bit":
        return False
    count, *dimensions = op.shape
    if op.kind == "grouped_product":  # its rows are padded where experts have other numbers of them
        return all(size % FP8_MULTIPLE == 0 for size in dimensions[1:])
    return count == 1 and all(size % FP8_MULTIPLE == 0 for size in dimensions)


def _rate_of(op: Op, machine: Machine) -> float:
    found = format_of(op.dtype)
    if found not in machine.products:
        raise UserError(f"{machine.gpu}: no rate of products in FP8 is known: run them in 16 bits, or give `rates.fp8`")
    return machine.products[found]


def _bytes_of(dtype: str) -> int:
    return {"fp8": 1, "16-bit": 2, "fp32": 4}[format_of(dtype)]
