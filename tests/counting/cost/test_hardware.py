"""The catalogue of accelerators, against vendors' figures."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from counting.cost.hardware import Gpu, find_gpu, load_gpus, read_gpus
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


def test_capacity_is_what_the_driver_reports_else_a_gb_is_2_to_the_30() -> None:
    """Of a board of two dies it is that of both."""
    h100, mi250x = find_gpu("H100"), find_gpu("MI250X")
    assert h100.capacity_bytes == h100.device_capacity_bytes == 84_932_558_848
    assert mi250x.capacity_bytes == 2 * mi250x.device_capacity_bytes == 2 * 65_520 * 2**20
    of_vendors = msgspec.structs.replace(h100.sources, driver_memory=None)
    assert msgspec.structs.replace(h100, driver_memory_bytes=None, sources=of_vendors).capacity_bytes == 80 * 2**30


def test_the_file_is_read_when_it_is_needed_and_not_before() -> None:
    script = "from counting.cost.hardware import load_gpus as f; assert not f.cache_info().currsize; f(); print('read')"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "read\n"


# --- What a process finds of a device --------------------------------------------------------------------------------

# As drivers report one device's memory, in bytes: the total that out-of-memory errors print.
DRIVER_MEMORY = {"V100": 34058272768, "T4": 14909 * 2**20, "A100": 81050 * 2**20, "L40S": 47576711168}
DRIVER_MEMORY |= {"H100": 80998 * 2**20, "H800": 80998 * 2**20, "H20": 97285 * 2**20, "B200": 182631 * 2**20}
DRIVER_MEMORY |= {"GB200": 197897748480, "MI250X": 65520 * 2**20, "TPU-v4": 123 * 2**28, "TPU-v5e": 63 * 2**28}


@pytest.mark.parametrize("name", DRIVER_MEMORY)
def test_what_drivers_report(name: str) -> None:
    assert find_gpu(name).device_capacity_bytes == DRIVER_MEMORY[name]


def test_mi250x_is_two_devices_of_64_gb() -> None:
    board = find_gpu("MI250X")
    assert (board.devices, board.memory_gb) == (2, 128)
    assert board.device_capacity_bytes == 2**36 - 2**24  # 16 MiB short of 64 GiB
    unknown = msgspec.structs.replace(
        board,
        driver_memory_bytes=None,
        sources=msgspec.structs.replace(board.sources, driver_memory=None),
    )
    assert unknown.device_capacity_bytes == 64 * 2**30
    assert [gpu.name for gpu in load_gpus() if gpu.devices != 1] == ["MI250X"]


@pytest.mark.parametrize("name", FIGURES)
def test_what_a_process_finds_has_an_address_or_says_that_it_has_none(name: str) -> None:
    sources = find_gpu(name).sources
    for source in (sources.driver_memory, sources.context):
        assert (
            source is None or re.search(r"github\.com/|huggingface\.co/", source) or source.startswith("unverified: ")
        )


@pytest.mark.parametrize("name", FIGURES)
def test_a_driver_keeps_little_and_a_context_is_small(name: str) -> None:
    """Within 10 % of what vendors print, a GB taken as 2^30; only TPU-v5p has more than its 95 GB."""
    gpu = find_gpu(name)
    share = gpu.capacity_bytes / (gpu.memory_gb * 2**30)
    assert (1 < share < 1.01) if name == "TPU-v5p" else (0.9 < share < 1)
    assert (gpu.context_bytes is None) == name.startswith(("MI", "TPU"))
    assert gpu.context_bytes is None or 2**28 < gpu.context_bytes < 2**30


# --- A file of the user's own ---------------------------------------------------------------------------------------

MINE: dict[str, Any] = {
    "name": "Mine",
    "description": "a card of one's own",
    "training_dtype": "bfloat16",
    "peak_dense_tflop_per_s": 100,
    "peak_dense_fp8_tflop_per_s": None,
    "memory_gb": 10,
    "memory_bandwidth_tb_per_s": 1,
    "power_watts": None,
    "price_usd_per_hour": 0.5,
    "sources": {"compute": "measured", "memory": "its box", "power": None, "price": "our contract"},
}


def write(folder: Path, content: object) -> Path:
    path = folder / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_a_gpu_of_one_s_own(tmp_path: Path) -> None:
    (gpu,) = read_gpus(write(tmp_path, [MINE]))
    assert (gpu.name, gpu.peak_flop_per_s, gpu.price_usd_per_hour) == ("Mine", 10**14, 0.5)
    assert (gpu.devices, gpu.context_bytes, gpu.device_capacity_bytes) == (1, None, 10 * 2**30)
    other = MINE | {"name": "Other", "devices": 2, "driver_memory_bytes": 5 * 10**9}
    other["sources"] = MINE["sources"] | {"driver_memory": "torch"}
    assert [each.device_capacity_bytes for each in read_gpus(write(tmp_path, [MINE, other]))] == [10 * 2**30, 5 * 10**9]


WITHOUT_PEAK = {field: value for field, value in MINE.items() if field != "peak_dense_tflop_per_s"}
SOURCES = MINE["sources"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not valid JSON: "),
        ("[NaN]", "not valid JSON: "),
        ("{}", r"must be a JSON list of entries as in configs/gpus\.json, but is '?\{\}"),
        ([], r"must be a JSON list of entries as in configs/gpus\.json, but is '?\[\]"),
        ([MINE, 5], "entry 2: must be a JSON object of a GPU's fields, but is 5$"),
        ([WITHOUT_PEAK], r"entry 1 \(Mine\): peak_dense_tflop_per_s = null: is missing"),
        ([MINE | {"memory_gb": 0}], r"entry 1 \(Mine\): memory_gb = 0: must be float >= 0.001"),
        ([MINE | {"memory_gb": 1e308}], r"memory_gb = 1e\+308: must be float <= 1000000\.0$"),
        (
            [MINE | {"peak_dense_tflop_per_s": 989e12}],
            r"peak_dense_tflop_per_s = 989000000000000\.0: must be float <= 1000000",
        ),
        ([MINE | {"price_usd_per_hour": 1e-300}], r"price_usd_per_hour = 1e-300: must be float >= 0\.01$"),
        (
            [MINE | {"driver_memory_bytes": 11 * 10**9, "sources": SOURCES | {"driver_memory": "x"}}],
            r"driver_memory_bytes = 11000000000: is more than memory_gb \(10\) on 1 device$",
        ),
        ([MINE | {"memory_gb": "10"}], r"entry 1 \(Mine\): memory_gb = '10': must be float, is str$"),
        ([MINE | {"devices": 0}], r"entry 1 \(Mine\): devices = 0: must be int >= 1"),
        ([MINE | {"training_dtype": "fp4"}], r"training_dtype = 'fp4': must be 'bfloat16' or 'float16'$"),
        ([MINE | {"memory": 10}], r"entry 1 \(Mine\): memory = 10: this field is not understood$"),
        ([MINE | {"name": "a,b"}], r"name = 'a,b': must be a name on one line, without commas"),
        ([MINE | {"name": ""}], "entry 1 .*name = '': must be a name on one line"),
        ([MINE | {"name": 3}], "entry 1: name = 3: must be str, is int$"),
        (
            [MINE, MINE | {"name": "mine"}],
            r"entry 2 \(mine\): name = 'mine': is also in entry 1: give it another name",
        ),
        ([MINE | {"name": "h100"}], "name = 'h100': is also in the catalogue: give it another name$"),
        ([MINE | {"sources": {"compute": "x"}}], r"entry 1 \(Mine\): sources\.memory = null: is missing"),
        ([MINE | {"sources": SOURCES | {"who": "me"}}], r"sources\.who = 'me': this field is not understood$"),
        (
            [MINE | {"sources": SOURCES | {"price": None}}],
            r"sources\.price = null: must say where price_usd_per_hour \(0\.5\) comes from$",
        ),
        (
            [MINE | {"sources": SOURCES | {"context": "x"}}],
            r"sources\.context = 'x': is the source of context_bytes, which is not given$",
        ),
    ],
)
def test_a_gpu_file_that_is_none(tmp_path: Path, content: object, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=message) as raised:
        read_gpus(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_a_gpu_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json: no such file$"):
        read_gpus(tmp_path / "none.json")
    with pytest.raises(UserError, match=f"{tmp_path.name}: must be a file of JSON$"):
        read_gpus(tmp_path)


def test_devices_of_a_node_are_known_or_open() -> None:
    """Eight on a board of eight, two dies of four boards, and the rack that its links make one node."""
    per_node = {gpu.name: gpu.devices_per_node for gpu in load_gpus()}
    assert (per_node["H100"], per_node["H800"], per_node["MI250X"], per_node["GB200"]) == (8, 8, 8, 72)
    assert {per_node[name] for name in ("T4", "L4", "L40S", "H100-PCIe", "H20", "TPU-v5p")} == {None}
    assert all((gpu.sources.node is None) == (gpu.devices_per_node is None) for gpu in load_gpus())
