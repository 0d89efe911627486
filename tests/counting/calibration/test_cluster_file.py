"""What was measured, as a cluster's file: read again, it is what was measured."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from counting.calibration.cluster_file import (
    as_text,
    gpu_of,
    measured_links,
    measured_rates,
    own_entry,
    with_machine,
    with_scale,
)
from counting.cost.cluster import Calibration, read_cluster
from counting.cost.hardware import find_gpu, load_gpus
from tests.counting.calibration.found_machines import ACROSS, NODE, found_machine


def read(document: dict[str, Any], folder: Path) -> Any:
    (folder / "cluster.json").write_text(as_text(document), encoding="utf-8")
    return read_cluster(folder / "cluster.json")


def test_a_cpu_becomes_an_entry_of_its_own_whose_peaks_are_the_best_measured(tmp_path: Path) -> None:
    document = with_machine({}, found_machine(), None)
    cluster = read(document, tmp_path)
    gpu, rates = cluster.gpu, cluster.gpu.rates
    assert gpu.name == "AMD EPYC 64-Core Processor", "no comma, no equals sign"
    assert gpu.description.endswith("2 threads, as measured")
    assert (gpu.peak_dense_tflop_per_s, gpu.memory_bandwidth_tb_per_s, gpu.memory_gb) == (0.5, 0.08, 24)
    assert "no vendor's figure" in gpu.sources.compute
    assert (rates.bf16.best_tflop_per_s, rates.bf16.sustained_tflop_per_s) == (0.5, 0.4)
    assert (rates.fp32.best_tflop_per_s, rates.fp32.sustained_tflop_per_s) == (0.2, 0.18)
    assert [(row.tokens_per_expert, row.share_of_peak) for row in rates.grouped] == [(128, 0.5)], "0.25 of 0.5"
    assert [(row.forward_tflop_per_s, row.backward_tflop_per_s) for row in rates.attention] == [(0.06, 0.08)]
    assert rates.memory_bandwidth_share == 0.25, "20 of 80 GB/s"
    assert rates.launch_seconds == 2e-6
    assert rates.multiprocessors is None, "tiles and waves are a GPU's"
    assert (cluster.node_link, cluster.network_link, cluster.gpus_per_node) == (None, None, None)


def test_what_a_file_has_is_kept_but_for_what_belongs_to_other_rates(tmp_path: Path) -> None:
    known = {
        "gpu": "H100",
        "gpus_per_node": 4,
        "network_link": {"gb_per_s": 25, "source": "us"},
        "power_watts": 500,
        "attention_kernel": "FlashAttention-3",
        "calibration": {"scale": 1.1, "low": 0.9, "high": 1.1, "rows": 3},
    }
    found = found_machine(device="cuda", device_name="NVIDIA H100 80GB HBM3", threads=1)
    document = with_machine(known, found, find_gpu("H100"))
    cluster = read(document, tmp_path)
    assert cluster.gpu.name == "H100"
    assert (cluster.gpus_per_node, cluster.network_link.gb_per_s) == (4, 25)
    assert (cluster.power_watts, cluster.calibration, cluster.attention_kernel) == (None, None, None)
    assert cluster.gpu.rates.bf16.sustained_tflop_per_s == 0.4
    assert cluster.gpu.rates.memory_bandwidth_share == pytest.approx(20 / 3350)
    assert known["power_watts"] == 500, "the argument is not changed"


def test_a_scale_goes_beside_what_a_file_has(tmp_path: Path) -> None:
    scale = Calibration(scale=1.2, low=0.95, high=1.04, rows=5)
    cluster = read(with_scale({"gpu": "H100", "power_watts": 500}, scale), tmp_path)
    assert (cluster.calibration, cluster.power_watts) == (scale, 500)


@pytest.mark.parametrize(
    ("name", "memory_gib", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 79.2, "H100"),
        ("NVIDIA H100 PCIe", 79.2, "H100-PCIe"),
        ("NVIDIA A100-SXM4-80GB", 79.3, "A100"),
        ("NVIDIA A100-SXM4-40GB", 39.4, None),  # of another size
        ("NVIDIA H100 96GB HBM2e", 94, None),
        ("NVIDIA GB200", 184, "GB200"),
        ("NVIDIA L40S", 44.4, "L40S"),
        ("NVIDIA GeForce RTX 4090", 23.6, None),
    ],
)
def test_a_gpu_is_found_by_name_and_memory(name: str, memory_gib: float, expected: str | None) -> None:
    gpu = gpu_of(found_machine(device="cuda", device_name=name, memory_bytes=round(memory_gib * 2**30)))
    assert (gpu.name if gpu else None) == expected


def test_a_cpu_is_no_gpu_and_no_entry_has_a_name_of_the_catalogue() -> None:
    named = found_machine(device_name="H100", memory_bytes=80 * 2**30)
    assert gpu_of(named) is None
    assert own_entry(named).name not in {gpu.name for gpu in load_gpus()}


def test_links_of_one_gpu_follow_from_rings() -> None:
    """Within a node 320 GB/s pass each of 8 ranks, in 7 steps of 3 us; across two nodes 280, and 8 links share them.

    Of the 15 steps across nodes, 14 are within them: 70.4 - 8.4 of the call - 14 x 3 = 20 us for the one that crosses.
    """
    h100 = find_gpu("H100")
    links = measured_links(found_machine(device="cuda", links=(NODE, ACROSS)), h100)
    node, network = links["node_link"], links["network_link"]
    assert (node.achieved_gb_per_s, node.latency_seconds) == (320, pytest.approx(3e-6))
    assert (network.achieved_gb_per_s, network.latency_seconds) == (35, pytest.approx(20e-6))
    assert h100.rates is not None
    assert h100.rates.node_link is not None
    assert node.gb_per_s == h100.rates.node_link.gb_per_s == 450, "no run is faster than the vendor's figure"
    ours = measured_links(found_machine(links=(NODE, ACROSS)), own_entry(found_machine()))
    assert (ours["node_link"].gb_per_s, ours["network_link"].gb_per_s) == (360, 42), "336 / 8"


def test_tiles_and_waves_are_counted_where_an_entry_says_so() -> None:
    found = found_machine(device="cuda", multiprocessors=132)
    assert measured_rates(found, own_entry(found)).multiprocessors == 132
    h100 = find_gpu("H100")
    assert measured_rates(found, h100).multiprocessors is None, "the entry's are kept, or none"


def test_rates_are_those_of_a_board() -> None:
    """A die of two achieves 0.4: both 0.8, as the peaks of a board are of both; shares are of one die's peak."""
    mi250x = msgspec.structs.replace(find_gpu("MI250X"), peak_dense_tflop_per_s=1.0, memory_bandwidth_tb_per_s=0.08)
    assert mi250x.devices == 2
    rates = measured_rates(found_machine(device="cuda"), mi250x)
    assert (rates.bf16.sustained_tflop_per_s, rates.attention[0].forward_tflop_per_s) == (0.8, 0.12)
    assert (rates.grouped[0].share_of_peak, rates.memory_bandwidth_share) == (0.5, 0.5)


def test_links_are_in_the_file(tmp_path: Path) -> None:
    cluster = read(with_machine({}, found_machine(links=(NODE,), gpus_per_node=8), None), tmp_path)
    assert (cluster.gpus_per_node, cluster.node_link.achieved_gb_per_s) == (8, 320)
    assert cluster.network_link is None
    assert "gloo on 8 ranks" in cluster.node_link.source
