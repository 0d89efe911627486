"""The rates of the catalogue: that each is sourced, possible, and what its source says."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any

import msgspec
import pytest

from counting.cost.hardware import Gpu, find_gpu, load_gpus, read_gpus
from counting.cost.rates import AttentionRate, GpuRates, ProductRates
from counting.cost.rates_of_gpu import rates_of_gpu
from torch_models.errors import UserError

RATED = {gpu.name: gpu.rates for gpu in load_gpus() if gpu.rates is not None}
POWER_SHARES = [0.5, 0.6, 5 / 7, 0.8, 0.9, 1.0]

# Name: best and sustained 16-bit TFLOP/s, and FP8; share of memory bandwidth; printed and achieved GB/s in a node.
# ml-engineering's table, fast.cu, DeepGEMM, torch-performance-test-data; SemiAnalysis, Azure, SimuMax; streams; NCCL.
RATES = {
    "V100": (97.36, 89.37, None, 0.876, (150, 120)),
    "A100": (271.2, 255, None, 0.834, (300, 235)),
    "L4": (70.89, 56.9, None, 0.961, None),
    "L40S": (269.15, 216, None, 0.961, None),
    "H100": (808, 720, (1550, 1280), 0.887, (450, 362)),
    "H100-PCIe": (503.83, 471.79, None, 0.916, None),
    "H800": (808, 720, (1550, 1280), 0.887, (200, 160)),
    "H20": (142.25, 142.25, None, 0.865, (450, 337)),
    "H200": (808, 720, (1550, 1280), 0.865, (450, 362)),
    "B200": (1745, 1074, (3432.5, 2113), 0.851, (900, 606)),
    "GB200": (1822, 1121, (3615.6, 2225), 0.851, (900, 606)),
    "MI300X": (668.4, 620, None, 0.747, (448, 336)),
}


def test_these_have_rates_and_the_others_none() -> None:
    assert list(RATED) == list(RATES)
    assert all(gpu.architecture for gpu in load_gpus())


@pytest.mark.parametrize("name", RATES)
def test_rates(name: str) -> None:
    rates = RATED[name]
    best, sustained, fp8, share, link = RATES[name]
    assert (rates.bf16.best_tflop_per_s, rates.bf16.sustained_tflop_per_s) == (best, sustained)
    assert fp8 == (rates.fp8 and (rates.fp8.best_tflop_per_s, rates.fp8.sustained_tflop_per_s))
    assert rates.memory_bandwidth_share == share
    assert link == (rates.node_link and (rates.node_link.gb_per_s, rates.node_link.achieved_gb_per_s))


def sources(value: object) -> Iterator[str | None]:
    """All fields of `value` and of what it holds that are called a source."""
    if isinstance(value, tuple):
        for item in value:
            yield from sources(item)
    if isinstance(value, msgspec.Struct):
        for field in value.__struct_fields__:
            if field.endswith("source"):
                yield getattr(value, field)
            yield from sources(getattr(value, field))


@pytest.mark.parametrize("name", RATES)
def test_every_number_has_a_source_that_can_be_looked_up(name: str) -> None:
    address = re.compile(
        r"github\.com/|arXiv \d{4}\.\d{5}|NVIDIA .* (datasheet|Architecture)|AMD .* datasheet|ISCA 2025"
    )
    found = [source for source in sources(RATED[name]) if source is not None]
    assert len(found) >= 6
    assert [source for source in found if not address.search(source)] == []


def all_products(name: str) -> list[tuple[ProductRates, float]]:
    """Product rates of `name` with the dense peak of their format, of FP32 the 16-bit one."""
    gpu, rates = find_gpu(name), RATED[name]
    found = [(rates.bf16, gpu.peak_dense_tflop_per_s)]
    found += [] if rates.fp8 is None else [(rates.fp8, gpu.peak_dense_fp8_tflop_per_s or 0)]
    return found + ([] if rates.fp32 is None else [(rates.fp32, gpu.peak_dense_tflop_per_s)])


@pytest.mark.parametrize("name", RATES)
def test_best_is_between_sustained_and_the_peak_at_every_power_limit(name: str) -> None:
    """The bound must not fall below the estimate, and a lower limit must not make anything faster."""
    for products, peak in all_products(name):
        assert products.sustained_tflop_per_s <= products.best_tflop_per_s <= peak
        exponents = (products.best_power_exponent, products.sustained_power_exponent)
        assert (exponents[0] is None) == (exponents[1] is None)
        if exponents[0] is None or exponents[1] is None:
            continue
        best = [products.best_tflop_per_s * share ** exponents[0] for share in POWER_SHARES]
        sustained = [products.sustained_tflop_per_s * share ** exponents[1] for share in POWER_SHARES]
        assert best == sorted(best)
        assert sustained == sorted(sustained)
        assert all(a >= b for a, b in zip(best, sustained, strict=True))


@pytest.mark.parametrize("name", RATES)
def test_tables_rise_with_tokens_and_with_length_and_stay_below_the_peak(name: str) -> None:
    rates, _ = rates_of_gpu(find_gpu(name))
    for table in (rates.grouped, rates.grouped_fp8):
        tokens = [row.tokens_per_expert for row in table]
        shares = [row.share_of_peak for row in table]
        assert (tokens, shares) == (sorted(set(tokens)), sorted(shares))
    kernels = {(row.kernel, row.head_size) for row in rates.attention}
    for kernel, head_size in kernels:
        rows = [row for row in rates.attention if (row.kernel, row.head_size) == (kernel, head_size)]
        lengths = [row.sequence_length for row in rows]
        assert lengths == sorted(set(lengths))
        for direction in ("forward_tflop_per_s", "backward_tflop_per_s"):
            speeds = [getattr(row, direction) for row in rows]
            assert max(speeds) < find_gpu(name).peak_dense_tflop_per_s
            # The only one that falls is the B200's with unequal heads, from 4096 to 32768.
            assert speeds == sorted(speeds) or (name in ("B200", "GB200") and head_size == 192)


@pytest.mark.parametrize("name", RATES)
def test_links_achieve_most_of_what_is_printed(name: str) -> None:
    for link in (RATED[name].node_link, RATED[name].network_link):
        if link is not None and link.achieved_gb_per_s is not None:
            assert 0.6 < link.achieved_gb_per_s / link.gb_per_s <= 1


# --- Numbers that follow from what the sources print ----------------------------------------------------------------


def test_power_exponents_are_those_of_one_chip_at_two_limits() -> None:
    """A100 SXM and PCIe: 400 and 300 W, 108 multiprocessors both; best 271.2 and 252.9, sustained 255 and 229.3.

    H100 SXM and PCIe: 700 and 350 W, 132 and 114 multiprocessors; best 808 and 495.93 x 132 / 114 at most; sustained
    720 and 471.79 x (132 / 114)^(2/3): power as the cube of the clock, so at equal power multiprocessors^(2/3).
    """
    a100, h100 = RATED["A100"].bf16, RATED["H100"].bf16
    ratio = math.log(400 / 300)
    assert a100.best_power_exponent == pytest.approx(math.log(271.2 / 252.9) / ratio, abs=5e-4)
    assert a100.sustained_power_exponent == pytest.approx(math.log(255 / 229.3) / ratio, abs=5e-4)
    assert h100.best_power_exponent == pytest.approx(math.log2(808 / (495.93 * 132 / 114)), abs=5e-4)
    assert h100.sustained_power_exponent == pytest.approx(math.log2(720 / (471.79 * (132 / 114) ** (2 / 3))), abs=5e-4)


def mean_range(number: int) -> float:
    """The expected range of so many standard normal numbers (Tippett 1925): the integral of 1 - p^n - (1 - p)^n."""
    step, normal = 1e-3, NormalDist()
    points = (normal.cdf(step * index) for index in range(-8000, 8001))
    return step * sum(1 - p**number - (1 - p) ** number for p in points)


def test_spread_is_a_range_of_eight_as_a_standard_deviation() -> None:
    assert mean_range(8) == pytest.approx(2.847, abs=5e-4)
    assert {rates.spread for rates in RATED.values()} == {round(0.05 / 2.847, 4)}


def test_products_beside_collectives_are_slowed_by_what_the_study_says() -> None:
    assert {rates.beside_collectives_share for rates in RATED.values()} == {round(1 / 1.189, 3)}


def row_of(name: str, kernel: str, head_size: int, length: int) -> AttentionRate:
    wanted = (kernel, head_size, length)
    (row,) = [row for row in RATED[name].attention if (row.kernel, row.head_size, row.sequence_length) == wanted]
    return row


@pytest.mark.parametrize(
    ("head_size", "length", "both"),
    [(64, 512, 141), (64, 16384, 284), (128, 2048, 265), (128, 8192, 308)],  # flash-attention's README
)
def test_forward_and_backward_of_flash_attention_2_are_together_what_is_printed(
    head_size: int, length: int, both: int
) -> None:
    """Backward counts 2.5 times the FLOPs of forward: (1 + 2.5) / (1 / forward + 2.5 / backward)."""
    row = row_of("H100", "FlashAttention-2", head_size, length)
    assert round(3.5 / (1 / row.forward_tflop_per_s + 2.5 / row.backward_tflop_per_s)) == both


@pytest.mark.parametrize(("head_size", "length", "both"), [(64, 1024, 119), (128, 8192, 182), (128, 16384, 189)])
def test_the_a100s_split_adds_up(head_size: int, length: int, both: int) -> None:
    row = row_of("A100", "FlashAttention-2", head_size, length)
    assert row.forward_tflop_per_s / row.backward_tflop_per_s == pytest.approx(230 / 196, rel=5e-3)
    assert round(3.5 / (1 / row.forward_tflop_per_s + 2.5 / row.backward_tflop_per_s)) == both


def test_backward_with_mask_is_slowed_as_forward_is() -> None:
    """cuDNN, head size 128, length 4096: backward 499 without mask, forward 518 with and 609 without it."""
    assert row_of("H100", "cuDNN", 128, 4096).backward_tflop_per_s == round(499 * 518 / 609)
    assert row_of("H100", "FlashAttention-3", 64, 16384).backward_tflop_per_s == round(474 * 473 / 497)


def test_grouped_products_are_flops_over_time() -> None:
    """H200, 32,768 and 65,536 tokens of 32 experts, 6144 x 2048 and back, of 1,000 calls: pytorch issue 163425."""
    shares = {row.tokens_per_expert: row.share_of_peak for row in RATED["H100"].grouped}
    for tokens, seconds in ((1024, (1.45 + 2.94, 1.47 + 2.94)), (2048, (2.71 + 5.49, 2.77 + 5.53))):
        flops = 3 * 2 * 32 * tokens * 6144 * 2048 * 1000
        assert shares[tokens] == pytest.approx(2 * flops / sum(seconds) / 989e12, abs=1e-3)
    # H100, 8,192 tokens of 16 experts, forward, two shapes: pull 2490 of pytorch's ao.
    flops = 2 * 8192 * 5120 * 8192
    assert shares[512] == pytest.approx((flops / 1.31e-3 + flops / 1.26e-3) / 2 / 989e12, abs=1e-3)


# --- A GPU without rates --------------------------------------------------------------------------------------------


def gpu_like(name: str, **changes: Any) -> Gpu:
    return msgspec.structs.replace(find_gpu(name), name="Mine", **changes)


def test_own_rates_are_taken_as_they_are() -> None:
    assert rates_of_gpu(find_gpu("H100")) == (RATED["H100"], "H100")


def test_rates_of_the_nearest_of_the_architecture_are_scaled_by_the_peaks() -> None:
    """Half the peak of an H100 and a third of its FP8: products and attention follow, shares and launch do not."""
    mine = gpu_like("H100", rates=None, peak_dense_tflop_per_s=494.5, peak_dense_fp8_tflop_per_s=1979 / 3)
    rates, name = rates_of_gpu(mine)
    h100 = RATED["H100"]
    assert name == "H100"
    assert rates.bf16.best_tflop_per_s == pytest.approx(808 / 2)
    assert rates.bf16.sustained_tflop_per_s == pytest.approx(720 / 2)
    assert rates.fp8 is not None
    assert rates.fp8.best_tflop_per_s == pytest.approx(1550 / 3)
    assert rates.attention[0].backward_tflop_per_s == pytest.approx(h100.attention[0].backward_tflop_per_s / 2)
    assert (rates.grouped, rates.memory_bandwidth_share) == (h100.grouped, h100.memory_bandwidth_share)
    assert rates.launch_seconds == h100.launch_seconds
    assert (rates.node_link, rates.network_link, rates.multiprocessors) == (None, None, None)


def test_a_gpu_with_other_memory_has_the_rates_of_its_chip() -> None:
    """The H100 with HBM2e of 2.4 TB/s: the nearest by peak and bandwidth, and its links are to be given."""
    mine = gpu_like("H100", rates=None, memory_bandwidth_tb_per_s=2.4)
    rates, name = rates_of_gpu(mine)
    assert name == "H100"
    assert rates == msgspec.structs.replace(RATED["H100"], node_link=None, network_link=None)


def test_attention_and_experts_are_filled_in_from_the_family() -> None:
    """The H20 sustains 142.25 of 148, the H100 720 of 989."""
    rates, name = rates_of_gpu(find_gpu("H20"))
    assert name == "H20"
    assert rates.attention[0].forward_tflop_per_s == pytest.approx(180 * 142.25 / 720)
    assert rates.grouped[0].share_of_peak == pytest.approx(0.541 * (142.25 / 148) / (720 / 989))
    assert rates.grouped_fp8 == ()  # no FP8 rates of its own
    assert rates.node_link == RATED["H20"].node_link
    assert rates_of_gpu(find_gpu("H800"))[0].attention == RATED["H100"].attention


@pytest.mark.parametrize(
    ("gpu", "message"),
    [
        (find_gpu("T4"), r"^gpus = 'T4': has no rates .* no GPU of its architecture \(Turing\) has any: give an entry"),
        (
            gpu_like("H100", rates=None, architecture=None),
            "^gpus = 'Mine': has no rates .* its architecture is not given",
        ),
    ],
)
def test_without_rates_and_without_family_an_error_says_what_to_give(gpu: Gpu, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rates_of_gpu(gpu)


# --- A file of the user's own ---------------------------------------------------------------------------------------

MY_RATES: dict[str, Any] = {
    "bf16": {"best_tflop_per_s": 90, "sustained_tflop_per_s": 80, "source": "measured"},
    "memory_bandwidth_share": 0.9,
    "memory_bandwidth_source": "measured",
    "launch_seconds": 2e-6,
    "launch_source": "measured",
}
MINE: dict[str, Any] = {
    "name": "Mine",
    "description": "a card of one's own",
    "training_dtype": "bfloat16",
    "peak_dense_tflop_per_s": 100,
    "peak_dense_fp8_tflop_per_s": None,
    "memory_gb": 10,
    "memory_bandwidth_tb_per_s": 1,
    "power_watts": None,
    "price_usd_per_hour": None,
    "rates": MY_RATES,
    "sources": {"compute": "measured", "memory": "its box", "power": None, "price": None},
}


def write(folder: Path, rates: dict[str, Any]) -> Path:
    path = folder / "mine.json"
    path.write_text(json.dumps([MINE | {"rates": rates}]), encoding="utf-8")
    return path


def test_rates_of_one_s_own(tmp_path: Path) -> None:
    (gpu,) = read_gpus(write(tmp_path, MY_RATES))
    rates, name = rates_of_gpu(gpu)
    assert (rates, name) == (gpu.rates, "Mine")
    assert isinstance(rates, GpuRates)
    assert rates.bf16.best_tflop_per_s == 90


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (
            MY_RATES | {"bf16": MY_RATES["bf16"] | {"best_tflop_per_s": 70}},
            r"rates\.bf16\.sustained_tflop_per_s = 80.*: must be at most",
        ),
        (
            MY_RATES | {"bf16": MY_RATES["bf16"] | {"best_tflop_per_s": 101}},
            r"rates\.bf16\.best_tflop_per_s = 101.*dense peak \(100\)",
        ),
        (MY_RATES | {"fp8": MY_RATES["bf16"]}, r"rates\.fp8 = 'given': needs peak_dense_fp8_tflop_per_s"),
        (MY_RATES | {"launch_seconds": -1}, r"rates\.launch_seconds = -1.*must be float >= 0"),
        (MY_RATES | {"memory_bandwidth_share": 1.5}, r"rates\.memory_bandwidth_share = 1\.5: must be float <= 1"),
        (MY_RATES | {"spread": 0.02}, r"rates\.spread_source = null: must be given with spread"),
        (MY_RATES | {"speed": 1}, r"rates\.speed = 1: this field is not understood"),
        (
            MY_RATES | {"node_link": {"gb_per_s": 50, "achieved_gb_per_s": 60, "source": "measured"}},
            r"rates\.node_link\.achieved_gb_per_s = 60.*: must be at most gb_per_s \(50\)",
        ),
        (MY_RATES | {"attention": [{"kernel": 1}]}, r"rates\.attention\[0\]\.kernel = 1: must be str"),
        (MY_RATES | {"bf16": 3}, r"rates\.bf16 = 3: must be object, is int"),
        ({"bf16": MY_RATES["bf16"]}, r"rates\.memory_bandwidth_share = null: is missing"),
    ],
)
def test_rates_that_cannot_be(tmp_path: Path, rates: dict[str, Any], message: str) -> None:
    path = write(tmp_path, rates)
    with pytest.raises(UserError, match=message) as raised:
        read_gpus(path)
    assert str(raised.value).startswith(f"{path}: entry 1 (Mine): ")
    assert "\n" not in str(raised.value)
