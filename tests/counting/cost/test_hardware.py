"""The catalogue of accelerators, against vendors' figures."""

import subprocess
import sys

import msgspec
import pytest

from counting.cost.hardware import Gpu, find_gpu, load_gpus
from torch_models.errors import UserError

# Name: dense 16-bit TFLOP/s, FP8 TFLOP/s, memory GB, TB/s, dollars per hour.
FIGURES = {
    "V100": (125, None, 32, 0.90, 2.5),
    "T4": (65, None, 16, 0.32, 1.0),
    "A100": (312, None, 80, 2.039, 4.0),
    "L4": (121, 242, 24, 0.30, None),
    "L40S": (362, 733, 48, 0.864, None),
    "H100": (989, 1979, 80, 3.35, 3.0),
    "H100-PCIe": (756, 1513, 80, 2.0, None),
    "H800": (989, 1979, 80, 3.35, 2.0),
    "H20": (148, 296, 96, 4.0, None),
    "H200": (989, 1979, 141, 4.8, 4.0),
    "B200": (2250, 4500, 180, 7.7, 6.0),
    "GB200": (2500, 5000, 186, 8.0, None),
    "MI250X": (383, None, 128, 3.28, None),
    "MI300X": (1307, 2615, 192, 5.3, None),
    "TPU-v4": (275, None, 32, 1.2, None),
    "TPU-v5e": (197, None, 16, 0.82, None),
    "TPU-v5p": (459, None, 95, 2.76, None),
}


def test_the_catalogue_holds_these_and_no_others() -> None:
    assert [gpu.name for gpu in load_gpus()] == list(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_figures(name: str) -> None:
    gpu = find_gpu(name)
    peak, fp8, memory, bandwidth, price = FIGURES[name]
    assert (gpu.peak_dense_tflop_per_s, gpu.peak_dense_fp8_tflop_per_s) == (peak, fp8)
    assert (gpu.memory_gb, gpu.memory_bandwidth_tb_per_s, gpu.price_usd_per_hour) == (memory, bandwidth, price)
    assert gpu.peak_flop_per_s == peak * 10**12
    assert gpu.training_dtype == ("float16" if name in ("V100", "T4") else "bfloat16")


@pytest.mark.parametrize("name", ["h100-pcie", "H100-PCIE", " h100-PCIe "])
def test_a_name_is_found_in_any_case(name: str) -> None:
    assert find_gpu(name).name == "H100-PCIe"


def test_an_unknown_gpu_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"^gpus = 'A1000': is not known: choose from V100, T4, A100, .*, TPU-v5p"):
        find_gpu("A1000")


def test_numbers_must_be_positive() -> None:
    entry = msgspec.to_builtins(find_gpu("A100")) | {"peak_dense_tflop_per_s": 0}
    with pytest.raises(msgspec.ValidationError, match="peak_dense_tflop_per_s"):
        msgspec.convert(entry, type=Gpu)


# The board's limit in watts, as datasheets print it; no datasheet of a TPU or of the H20 does.
POWER = {"V100": 300, "T4": 70, "A100": 400, "L4": 72, "L40S": 350, "H100": 700, "H100-PCIe": 350, "H800": 700}
POWER |= {"H200": 700, "B200": 1000, "GB200": 1200, "MI250X": 560, "MI300X": 750}


@pytest.mark.parametrize("name", FIGURES)
def test_power_where_it_is_known_and_from_where(name: str) -> None:
    gpu = find_gpu(name)
    assert gpu.power_watts == POWER.get(name)
    assert (gpu.sources.power is None) == (name not in POWER)


def test_capacity_takes_a_gb_as_2_to_the_30() -> None:
    assert find_gpu("H100").capacity_bytes == 80 * 2**30
    assert find_gpu("B200").capacity_bytes == 180 * 2**30  # of 192


def test_the_file_is_read_when_it_is_needed_and_not_before() -> None:
    script = "from counting.cost.hardware import load_gpus as f; assert not f.cache_info().currsize; f(); print('read')"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "read\n"
