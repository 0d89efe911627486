"""The seconds of ops, each with its arithmetic. The hand-made machine is in clusters.py."""

import random

import msgspec
import pytest

from counting.cost.rates import GroupedRate
from counting.cost.step_time.attention import attention_rate, nearest_head_size
from counting.cost.step_time.machine import machine_of
from counting.cost.step_time.ops import ComputeSeconds, seconds_of_op, seconds_of_ops
from counting.cost.step_time.products import (
    grouped_rate,
    product_rate,
    tile_utilisation,
    tokens_per_expert,
    with_fp8_products,
)
from counting.work import Op
from tests.counting.cost.step_time.clusters import RATES, made_cluster
from torch_models.errors import UserError

ESTIMATE = machine_of(made_cluster(), "estimate")
BOUND = machine_of(made_cluster(), "bound")


def product(rows: int, summed: int, columns: int, *, batch: int = 1, dtype: str = "bfloat16") -> Op:
    """A product with the bytes of its three matrices."""
    flops = 2 * batch * rows * summed * columns
    size = 4 if dtype == "float32" else 2
    return Op(
        kind="product",
        name="mm",
        flops=flops,
        computed_flops=flops,
        bytes_read=size * batch * (rows * summed + summed * columns),
        bytes_written=size * batch * rows * columns,
        dtype=dtype,
        shape=(batch, rows, summed, columns),
    )


def grouped(experts: int, rows: int, summed: int, columns: int, *, gradient: bool = False) -> Op:
    """The products of experts; the gradient of their weights sums over all rows and writes a matrix of each expert."""
    flops = 2 * rows * summed * columns
    return Op(
        kind="grouped_product",
        name="_grouped_mm",
        flops=flops,
        computed_flops=flops,
        bytes_read=2 * (rows * summed + (1 if gradient else experts) * summed * columns),
        bytes_written=2 * (experts if gradient else 1) * rows * columns,
        shape=(experts, rows, summed, columns),
    )


def attention(
    length: int, *, key_size: int = 128, value_size: int = 128, name: str = "flash", backward: bool = False
) -> Op:
    """Causal attention of 1 sequence and 8 heads, without bytes."""
    flops = 2 * 8 * length * length * (key_size + value_size)
    return Op(
        kind="attention",
        name=name,
        flops=flops,
        computed_flops=flops // 2,
        shape=(1, 8, length, length, key_size, value_size),
        backward=backward,
    )


def test_a_large_product_takes_its_flops_at_the_sustained_rate() -> None:
    # 2 x 8192^3 = 1.0995e12 FLOPs, at 700 TFLOP/s 1570.7 us; its 3 x 134 MB at 1.6 TB/s take 252 us.
    op = product(8192, 8192, 8192)
    assert op.flops == 1_099_511_627_776
    assert seconds_of_op(op, ESTIMATE) == pytest.approx(1_099_511_627_776 / 700e12)
    assert seconds_of_op(op, BOUND) == pytest.approx(1_099_511_627_776 / 800e12)


def test_a_skinny_product_takes_its_bytes() -> None:
    # (16, 8192) x (8192, 8192): 2 x (131,072 + 67,108,864 + 131,072) = 134,742,016 bytes at 1.6 TB/s are 84.2 us; its
    # 2.1e9 FLOPs would take 3.1 us at the full rate, 49 us in tiles of which 16 of 128 rows are used.
    op = product(16, 8192, 8192)
    assert op.bytes_read + op.bytes_written == 134_742_016
    assert seconds_of_op(op, ESTIMATE) == pytest.approx(134_742_016 / 1.6e12)
    assert seconds_of_op(op, BOUND) == pytest.approx(134_742_016 / 2e12)


def test_an_elementwise_op_takes_its_bytes_and_a_launch() -> None:
    # 3 x 16 MB, 10 times: 480e6 / 1.6e12 = 300 us, and 10 launches of 5 us.
    op = Op(kind="memory", name="add", calls=10, bytes_read=32_000_000, bytes_written=16_000_000)
    assert seconds_of_ops([op], ESTIMATE) == ComputeSeconds(memory=pytest.approx(300e-6), launches=pytest.approx(50e-6))
    assert seconds_of_ops([op], BOUND) == ComputeSeconds(memory=pytest.approx(240e-6))


# Tiles of 128 x 256 of the result, 100 multiprocessors (NVIDIA, Matrix Multiplication Background User's Guide).
@pytest.mark.parametrize(
    ("shape", "share"),
    [
        # 10 x 10 tiles of 128 x 256: one full wave.
        ((1, 1280, 4096, 2560), 1.0),
        # One column of tiles more: 110 tiles, 2 waves of 100. Squares: 10 x 22 = 220, 3 waves of 100: 220 / 300.
        # Upright 256 x 128: 5 x 22 = 110 as well, 110 / 200. The squares win.
        ((1, 1280, 4096, 2816), 220 / 300),
        # 130 rows reach into a second row of tiles: of 128 x 256, 2 x 50 = 100 tiles in one wave, of which 130 / 256
        # are used; of 256 x 128, 1 x 100 tiles with the same share.
        ((1, 130, 4096, 12800), 130 / 256),
        # A batch of 100 squares of 256 x 256: 200 tiles in 2 full waves.
        ((100, 256, 64, 256), 1.0),
        # 2 x 4 tiles of 256 x 128, and 12 multiprocessors share the sum of each: 96 of 100. Squares: 4 x 4, 6 each: 96.
        ((1, 512, 8192, 512), 0.96),
        # The same with a short sum, 512 = 2 parts of 256: 16 squares, 2 each, 32 of 100.
        ((1, 512, 512, 512), 0.32),
    ],
)
def test_tiles_and_waves(shape: tuple[int, ...], share: float) -> None:
    assert tile_utilisation(shape, 100) == pytest.approx(share)


def test_tiles_and_waves_count_below_1e11_flops_alone() -> None:
    small, large = product(1280, 4096, 2816), product(1280, 40960, 2816)  # 2.95e10 and 2.95e11 FLOPs
    assert product_rate(small, ESTIMATE) == pytest.approx(700e12 * 220 / 300)
    assert product_rate(large, ESTIMATE) == 700e12
    assert product_rate(small, BOUND) == 800e12


def test_no_shape_uses_more_than_all_multiprocessors() -> None:
    draw = random.Random(1)
    for _ in range(500):
        shape = tuple(draw.randint(1, most) for most in (64, 10_000, 10_000, 10_000))
        assert 0 < tile_utilisation(shape, draw.randint(1, 304)) <= 1 + 1e-12


def test_formats_have_rates_of_their_own() -> None:
    assert product_rate(product(8192, 8192, 8192, dtype="float16"), ESTIMATE) == 700e12
    assert product_rate(product(8192, 8192, 8192, dtype="float8_e4m3fn"), ESTIMATE) == 1200e12
    assert product_rate(product(8192, 8192, 8192, dtype="float32"), ESTIMATE) == 700e12 / 16
    without = machine_of(made_cluster(fp8=None), "estimate")
    with pytest.raises(UserError, match="made: no rate of products in FP8"):
        product_rate(product(8192, 8192, 8192, dtype="float8_e4m3fn"), without)


# Shares of the peak of 1000 TFLOP/s: 0.2 with 256 tokens an expert, 0.6 with 4096; linear in log2 between.
@pytest.mark.parametrize(
    ("tokens", "tflop_per_s"),
    [(1, 200), (256, 200), (1024, 400), (2048, 500), (4096, 600), (100_000, 600)],
)
def test_products_of_experts_by_tokens_an_expert(tokens: int, tflop_per_s: float) -> None:
    assert grouped_rate(grouped(8, 8 * tokens, 2048, 1024), ESTIMATE) == pytest.approx(tflop_per_s * 1e12)
    gradient = grouped(8, 2048, 8 * tokens, 1024, gradient=True)
    assert tokens_per_expert(gradient) == tokens
    assert grouped_rate(gradient, ESTIMATE) == pytest.approx(tflop_per_s * 1e12)


def test_products_of_experts_in_fp8_are_faster_as_others_are() -> None:
    op = msgspec.structs.replace(grouped(8, 8 * 1024, 2048, 1024), dtype="float8_e4m3fn")
    assert grouped_rate(op, ESTIMATE) == pytest.approx(400e12 * 1200 / 700)
    # Where they were measured in FP8: 0.5 of the peak of 2000 TFLOP/s.
    measured = (GroupedRate(tokens_per_expert=512, share_of_peak=0.5, source="made up"),)
    assert grouped_rate(op, machine_of(made_cluster(grouped_fp8=measured), "estimate")) == 1000e12


def test_products_of_experts_without_measured_rates_lose_to_tiles() -> None:
    machine = machine_of(made_cluster(grouped=()), "estimate")
    # Each of 8 experts has 64 rows of a tile of 128: 8 x 1 x 10 tiles of 128 x 256, 80 of 100, half used.
    assert grouped_rate(grouped(8, 8 * 64, 2048, 2560), machine) == pytest.approx(0.4 * 700e12)
    # Gradient of the weights (1280, 2560) of 1 expert in 4 with 64 tokens: 4 x 10 x 10 tiles, 4 full waves.
    assert grouped_rate(grouped(4, 1280, 4 * 64, 2560, gradient=True), machine) == pytest.approx(700e12)
    # 2 x 4 x 4 squares, whose sums over the 256 tokens of an expert are too short to be split: 32 of 100.
    assert grouped_rate(grouped(2, 512, 2 * 256, 512, gradient=True), machine) == pytest.approx(0.32 * 700e12)


def test_products_of_experts_are_no_faster_than_others() -> None:
    fast = (GroupedRate(tokens_per_expert=512, share_of_peak=0.75, source="made up"),)
    machine = machine_of(made_cluster(grouped=fast), "estimate")
    assert grouped_rate(grouped(8, 8 * 1024, 2048, 1024), machine) == 700e12


# FlashAttention-2 with heads of 128: 300 forward at 2048, 400 at 8192; 200 and 300 backward. With heads of 64: 250.
@pytest.mark.parametrize(
    ("op", "tflop_per_s"),
    [
        (attention(2048), 300),
        (attention(4096), 350),  # halfway in the logarithm
        (attention(8192), 400),
        (attention(512), 300),
        (attention(131_072), 400),
        (attention(4096, backward=True), 250),
        (attention(2048, key_size=64, value_size=64), 250),
        (attention(2048, key_size=80, value_size=80), 250),  # 80 / 64 = 1.25, 128 / 80 = 1.6
        (attention(2048, key_size=192, value_size=128), 300),  # the mean, 160, is nearest to 128
        (attention(8192, name="_scaled_dot_product_cudnn_attention"), 500),
        (attention(8192, name="_scaled_dot_product_efficient_attention"), 400),  # not in the table: as the default
    ],
)
def test_attention_by_kernel_head_size_length_and_direction(op: Op, tflop_per_s: float) -> None:
    assert attention_rate(op, ESTIMATE) == pytest.approx(tflop_per_s * 1e12)
    assert seconds_of_op(op, ESTIMATE) == pytest.approx(op.computed_flops / (tflop_per_s * 1e12))
    assert seconds_of_op(op, BOUND) == pytest.approx(op.computed_flops / 800e12)


@pytest.mark.parametrize(
    ("key_size", "value_size", "tflop_per_s"),
    [
        (192, 128, 300),  # the mean, 160, is nearest to 128; 192 alone is to 256
        (256, 128, 450),  # 192 is nearest to 256; 128 alone is measured
    ],
)
def test_the_head_sizes_of_latent_attention_count_by_their_mean(
    key_size: int, value_size: int, tflop_per_s: float
) -> None:
    of_128 = next(row for row in RATES.attention if row.head_size == 128)
    of_256 = msgspec.structs.replace(of_128, head_size=256, forward_tflop_per_s=450)
    machine = machine_of(made_cluster(attention=(of_128, of_256)), "estimate")
    found = attention_rate(attention(2048, key_size=key_size, value_size=value_size), machine)
    assert found == pytest.approx(tflop_per_s * 1e12)


def test_the_kernel_of_attention_can_be_set() -> None:
    machine = machine_of(made_cluster(), "estimate", attention_kernel="cuDNN")
    assert attention_rate(attention(8192), machine) == 500e12


def test_attention_in_32_bits_and_without_a_table() -> None:
    in_fp32 = msgspec.structs.replace(attention(8192), dtype="float32")
    assert attention_rate(in_fp32, ESTIMATE) == pytest.approx(400e12 / 16)
    assert attention_rate(attention(8192), machine_of(made_cluster(attention=()), "estimate")) == 700e12


def test_the_nearest_head_size_is_that_of_the_smallest_ratio() -> None:
    assert nearest_head_size([64, 256, 128], 96) == 128  # 1.33 against 1.5
    assert nearest_head_size([256, 64], 128) == 64  # a factor of 2 both ways


def test_fp8_products_are_quantised_first() -> None:
    # (8192, 4096) x (4096, 1024): operands of 33,554,432 + 4,194,304 numbers. Two kernels read 2 bytes of each number
    # and write 1; the product then reads 1 of each, and writes 2 bytes of each of 8,388,608.
    quantise, multiply = with_fp8_products([msgspec.structs.replace(product(8192, 4096, 1024), calls=3)])
    assert (quantise.kind, quantise.calls) == ("memory", 6)
    assert quantise.calls * quantise.bytes_read == 3 * 2 * 37_748_736
    assert quantise.calls * quantise.bytes_written == 3 * 37_748_736
    assert (multiply.dtype, multiply.calls) == ("float8_e4m3fn", 3)
    assert (multiply.bytes_read, multiply.bytes_written) == (37_748_736, 16_777_216)
    assert multiply.flops == 2 * 8192 * 4096 * 1024
    # What writes the operands may write them in FP8.
    assert with_fp8_products([product(8192, 4096, 1024)], is_bound=True) == (
        msgspec.structs.replace(multiply, calls=1),
    )


@pytest.mark.parametrize(
    "op",
    [
        product(512, 512, 512, batch=8),  # scores of attention
        product(512, 512, 512, dtype="float32"),  # a router
        product(512, 512, 520),  # 520 is no multiple of 16
        attention(2048),
        Op(kind="memory", name="add", bytes_read=8),
    ],
)
def test_others_stay_as_they_are(op: Op) -> None:
    assert with_fp8_products([op]) == (op,)


def test_products_of_experts_run_in_fp8_too() -> None:
    quantise, multiply = with_fp8_products([grouped(8, 8 * 101, 2048, 1024)])  # rows are padded
    assert multiply.dtype == "float8_e4m3fn"
    assert quantise.calls * quantise.bytes_written == multiply.bytes_read == 808 * 2048 + 8 * 2048 * 1024


def random_op(draw: random.Random) -> Op:
    """An op of any kind and size."""
    size = lambda: draw.choice([1, 16, 64, 100, 128, 1000, 4096, 16_384])  # noqa: E731
    kind = draw.choice(["product", "grouped", "attention", "memory"])
    if kind == "product":
        dtype = draw.choice(["bfloat16", "float32", "float8_e4m3fn"])
        return product(size(), size(), size(), batch=draw.choice([1, 8]), dtype=dtype)
    if kind == "grouped":
        return grouped(draw.choice([1, 8, 64]), 64 * size(), size(), size(), gradient=draw.random() < 0.5)
    if kind == "attention":
        return attention(size(), key_size=draw.choice([64, 128, 192]), backward=draw.random() < 0.5)
    return Op(kind="memory", name="add", bytes_read=draw.randrange(10**9), bytes_written=draw.randrange(10**9))


def test_the_bound_of_an_op_is_never_above_its_estimate() -> None:
    draw = random.Random(2)
    slow = machine_of(made_cluster({"power_watts": 300}), "estimate", ranks=1024)
    bound = machine_of(made_cluster({"power_watts": 300}), "bound", ranks=1024)
    for _ in range(500):
        op = random_op(draw)
        assert 0 < seconds_of_op(op, bound) <= seconds_of_op(op, slow)
        assert seconds_of_ops([op], bound).total <= seconds_of_ops([op], slow).total


def test_infinite_bandwidth_leaves_arithmetic_alone() -> None:
    draw = random.Random(3)
    infinite = msgspec.structs.replace(ESTIMATE, bytes_per_s=float("inf"), launch_seconds=0.0, multiprocessors=None)
    for _ in range(200):
        op = product(draw.randint(1, 4096), draw.randint(1, 4096), draw.randint(1, 4096))
        assert seconds_of_op(op, infinite) == op.flops / 700e12
    assert seconds_of_ops([Op(kind="memory", name="add", bytes_read=10**9)], infinite).total == 0


def test_seconds_of_several_ops_are_their_sum() -> None:
    ops = [
        product(8192, 8192, 8192),
        attention(4096),
        Op(kind="memory", name="add", bytes_read=10**6),
        grouped(8, 8192, 512, 512),
    ]
    together = seconds_of_ops(ops, ESTIMATE)
    apart = ComputeSeconds()
    for op in ops:
        apart = apart + seconds_of_ops([op], ESTIMATE)
    assert together == apart
    assert together.total == pytest.approx(sum(seconds_of_op(op, ESTIMATE) for op in ops) + 4 * 5e-6)
