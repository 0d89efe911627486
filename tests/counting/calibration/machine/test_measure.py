"""The machine at hand is measured: each rate is of work that was done, and the file can be used."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from counting.calibration.cluster_file import as_text, with_machine
from counting.calibration.machine import Ranks, attention, joined_ranks, measure_machine, memory_ops, products
from counting.calibration.machine.attention import causal_flops
from counting.calibration.machine.clock import FEWEST_TIMINGS, time_calls
from counting.calibration.machine.products import MatrixProduct
from counting.cost.cluster import read_cluster
from torch_models.errors import UserError

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[4]


def test_calls_are_timed_until_the_time_is_used() -> None:
    """A call of 5 ms, one that is not timed, one to see how long it takes, and then as many as fit 50 ms."""
    calls: list[float] = []

    def call() -> None:
        calls.append(time.perf_counter())
        time.sleep(5e-3)

    timed = time_calls(call, CPU, 0.05)
    assert 5e-3 <= timed.fastest <= timed.median
    assert FEWEST_TIMINGS + 2 <= len(calls) <= 11


def test_short_calls_are_timed_several_at_once() -> None:
    calls: list[None] = []
    timed = time_calls(lambda: calls.append(None), CPU, 0.0)
    assert timed.fastest < 1e-4
    assert len(calls) > 100 * FEWEST_TIMINGS


def test_flops_of_a_product_and_of_causal_attention() -> None:
    """(2 x 3) x (3 x 5): 2 x 30; of 2 sequences, 3 heads of 8 and 4 tokens: 10 of 16 scores, 2 x 2 x 48 x 10."""
    assert MatrixProduct(torch.ones(2, 3), torch.ones(3, 5)).flops == 60
    assert causal_flops(2, 3, 4, 8) == 1920


def test_a_machine_is_measured_in_little_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(attention, "ATTENTION_LENGTHS", (32, 64))
    monkeypatch.setattr(memory_ops, "LARGEST_TENSOR_BYTES", {"cpu": 2**19})
    monkeypatch.setattr(products, "MEASURED_TOKENS_PER_EXPERT", (4, 8))
    monkeypatch.setattr(products, "LARGEST_EXPERT", 32)
    shown: list[str] = []
    found = measure_machine(Ranks(), 0.05, shown.append)
    assert shown[0] == "measuring products in bfloat16, 256 x 256 ..."
    assert any("float32" in text for text in shown)
    assert shown[-1] == "measuring copies and other ops by bytes ..."
    assert (found.device, found.dtype, found.links, found.spread) == ("cpu", "bfloat16", (), None)
    assert found.threads == torch.get_num_threads()
    for rates in (found.products, found.fp32_products):
        assert 0 < rates.sustained_tflop_per_s <= rates.best_tflop_per_s
    assert [(row.head_size, row.sequence_length) for row in found.attention][:1] == [(64, 32)]
    assert {row.head_size for row in found.attention} == {64, 128}
    assert found.grouped[0].tokens_per_expert == 4
    assert 0 < found.bytes.sustained_gb_per_s <= max(found.bytes.by_op.values()) <= found.bytes.best_gb_per_s
    assert "norm" not in found.bytes.by_op, "several ops on a CPU"
    assert 0 < found.launch_seconds < 1e-3
    (tmp_path / "cluster.json").write_text(as_text(with_machine({}, found, None)), encoding="utf-8")
    gpu = read_cluster(tmp_path / "cluster.json").gpu
    assert gpu.peak_dense_tflop_per_s == found.products.best_tflop_per_s
    assert gpu.rates is not None
    assert 0 < gpu.rates.memory_bandwidth_share <= 1


# What a rank of a process group measures of it, with products of 64 and tensors of up to 4 KiB.
OF_RANK = """
import json, msgspec, torch
from counting.calibration.machine import collectives, joined_ranks
collectives.LARGEST_COLLECTIVE_BYTES = {"cpu": 2**12}
cpu, dtype = torch.device("cpu"), torch.bfloat16
with joined_ranks("cpu") as ranks:
    links = msgspec.to_builtins(collectives.measure_links(ranks, cpu, dtype))
    beside = collectives.measure_beside(ranks, cpu, dtype, 64)
    spread = collectives.relative_spread(ranks, cpu, 1.0 + 2 * ranks.rank)
    print(json.dumps([links, beside, spread, ranks.shared({"of": ranks.rank})]))
"""


def test_collectives_of_two_ranks() -> None:
    """Speeds 1 and 3: mean 2, deviation 1, relative 0.5. Both ranks agree on what the slowest of them took."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in ("0", "1"):
        of_torchrun = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"}
        environment = {**os.environ, **of_torchrun, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        command = [sys.executable, "-W", "error", "-c", OF_RANK]
        processes.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True))
    try:
        first, second = (json.loads(process.communicate(timeout=60)[0]) for process in processes)
    finally:
        for process in processes:
            process.kill()
    (link,), beside, spread, shared = first
    assert first[0] == second[0]
    assert (link["ranks"], link["in_node"]) == (2, 2)
    assert set(link["by_op"]) == {"all_gather", "reduce_scatter", "all_reduce", "all_to_all"}
    assert 0 < link["achieved_gb_per_s"] <= link["best_gb_per_s"]
    assert 0 < link["shortest_seconds"] < 1
    assert 0 < beside <= 1
    assert spread == second[2] == pytest.approx(0.5)
    assert shared == second[3] == {"of": 0}


def test_one_process_is_a_group_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with joined_ranks("cpu") as ranks:
        assert ranks == Ranks(rank=0, world=1, local_rank=0, in_node=1)
        assert ranks.shared("x") == "x"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"MASTER_PORT": None}, "the environment has RANK but no MASTER_PORT: start the processes with torchrun"),
        ({"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "2"}, "3 ranks with 2 on this node: start as many processes on each"),
        ({"RANK": "x"}, "must be whole numbers, but are"),
    ],
)
def test_an_environment_that_is_not_torchruns_is_refused(
    changes: dict[str, str | None], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    for name, value in {**given, "MASTER_PORT": "29500", **changes}.items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError) as error, joined_ranks("cpu"):
        pass
    assert says in str(error.value)
