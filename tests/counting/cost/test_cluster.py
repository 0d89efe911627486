"""A cluster: what its file may say, and what cannot be."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from counting.cost.cluster import Calibration, Cluster, read_cluster
from counting.cost.hardware import find_gpu
from counting.cost.rates import GpuRates, Link, ProductRates
from torch_models.errors import ArgumentError, UserError

LINK = {"gb_per_s": 50, "achieved_gb_per_s": 42.5, "latency_seconds": 2e-5, "source": "us"}
OWN_GPU = {
    "name": "Ours",
    "description": "a chip of our own",
    "training_dtype": "bfloat16",
    "peak_dense_tflop_per_s": 500,
    "peak_dense_fp8_tflop_per_s": None,
    "memory_gb": 128,
    "memory_bandwidth_tb_per_s": 2,
    "power_watts": None,
    "price_usd_per_hour": 1.25,
    "sources": {"compute": "us", "memory": "us", "power": None, "price": "us"},
}
RATES = {
    "bf16": {"best_tflop_per_s": 400, "sustained_tflop_per_s": 300, "source": "us"},
    "memory_bandwidth_share": 0.9,
    "memory_bandwidth_source": "us",
    "launch_seconds": 2e-6,
    "launch_source": "us",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cluster.json"


def read(file: Path, **fields: Any) -> Cluster:
    file.write_text(json.dumps({"gpu": "H100"} | fields))
    return read_cluster(file)


def test_a_name_of_the_catalogue_is_enough(file: Path) -> None:
    assert read(file, gpu="h100") == Cluster(gpu=find_gpu("H100"))


def test_every_field(file: Path) -> None:
    calibration = {"scale": 1.25, "low": 0.96, "high": 1.03, "rows": 5}
    software = {
        "attention_kernel": "cuDNN",
        "products_in_fp8": True,
        "overlap_expert_exchange": True,
        "norms": "op_by_op",
        "rotation": "complex",
        "key_value_heads": "repeated",
    }
    found = read(
        file,
        gpus_per_node=4,
        node_link=LINK,
        network_link={"gb_per_s": 25},
        power_watts=500,
        calibration=calibration,
        **software,
    )
    assert found == Cluster(
        gpu=find_gpu("H100"),
        gpus_per_node=4,
        node_link=Link(gb_per_s=50, achieved_gb_per_s=42.5, latency_seconds=2e-5, source="us"),
        network_link=Link(gb_per_s=25),
        power_watts=500,
        calibration=Calibration(scale=1.25, low=0.96, high=1.03, rows=5),
        attention_kernel="cuDNN",
        products_in_fp8=True,
        overlap_expert_exchange=True,
        norms="op_by_op",
        rotation="complex",
        key_value_heads="repeated",
    )


def test_what_is_written_is_read_again(file: Path) -> None:
    for gpu in (OWN_GPU | {"rates": RATES}, "H100"):
        cluster = read(file, gpu=gpu, node_link=LINK, gpus_per_node=2, rates={"launch_seconds": 3e-6})
        file.write_bytes(msgspec.json.encode(cluster))
        assert read_cluster(file) == cluster


def test_measured_rates_take_the_place_of_the_catalogues(file: Path) -> None:
    rates = msgspec.convert(RATES, GpuRates)
    assert read(file, gpu=OWN_GPU, rates=RATES).gpu.rates == rates
    own = OWN_GPU | {"rates": RATES}
    measured = read(file, gpu=own, rates={"launch_seconds": 4e-6}).gpu.rates
    assert measured == msgspec.structs.replace(rates, launch_seconds=4e-6)
    products = ProductRates(best_tflop_per_s=90, sustained_tflop_per_s=80, source="measured")
    measured = read(file, gpu=own, rates={"bf16": msgspec.to_builtins(products)}).gpu.rates
    assert measured == msgspec.structs.replace(rates, bf16=products)


def test_how_large_a_node_is(file: Path) -> None:
    assert read(file).node_size == find_gpu("H100").devices_per_node == 8
    assert read(file, gpu="GB200").node_size == find_gpu("GB200").devices_per_node == 72
    assert read(file, gpu="GB200", gpus_per_node=4).node_size == 4
    assert read(file, gpu=OWN_GPU).node_size == 8  # unknown


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"gpu": "H1000"}, "gpu = 'H1000': is not known: choose from "),
        ({"gpu": 8}, "gpu = 8: must be str | object, is int"),
        ({"gpu": {"name": "Ours"}}, "gpu.description = null: is missing and has no default"),
        ({"gpu": OWN_GPU | {"name": "H100"}}, "gpu.name = 'H100': is another one in the catalogue: give that name"),
        ({"gpus": "H100"}, "gpus = 'H100': this field is not understood"),
        ({"gpus_per_node": 0}, "gpus_per_node = 0: must be int >= 1"),
        ({"gpus_per_node": 1.5}, "gpus_per_node = 1.5: must be int | null, is float"),
        ({"network_link": {}}, "network_link.gb_per_s = null: is missing and has no default"),
        ({"network_link": LINK | {"gb_per_s": -1}}, "network_link.gb_per_s = -1: must be float >= 1e-06"),
        ({"network_link": LINK | {"gb_per_s": 1e300}}, "network_link.gb_per_s = 1e+300: must be float <= 1000000"),
        ({"network_link": LINK | {"gbps": 400}}, "network_link.gbps = 400: this field is not understood"),
        ({"node_link": LINK | {"latency_seconds": 2}}, "node_link.latency_seconds = 2: must be float <= 1"),
        ({"node_link": 900}, "node_link = 900: must be object | null, is int"),
        ({"power_watts": 701}, "power_watts = 701.0: must be at most the limit of the board of H100: 700"),
        ({"power_watts": 139}, "power_watts = 139.0: must be at least 20% of the limit of the board of H100, 700: far"),
        (
            {"rates": {"memory_bandwidth_share": 1e-300}},
            "rates.memory_bandwidth_share = 1e-300: must be float >= 0.001",
        ),
        ({"power_watts": 0}, "power_watts = 0: must be float >= 0.1"),
        ({"power_watts": -500}, "power_watts = -500: must be float >= 0.1"),
        ({"power_watts": 1e300}, "power_watts = 1e+300: must be float <= 1000000"),
        ({"gpu": OWN_GPU, "power_watts": 500}, "is compared with the limit of the board, which is not known of Ours"),
        (
            {"calibration": {"scale": 0, "low": 1, "high": 1, "rows": 3}},
            "calibration.scale = 0: must be float >= 0.001",
        ),
        ({"calibration": {"scale": 1, "low": 1, "high": 1, "rows": 2}}, "calibration.rows = 2: must be int >= 3"),
        (
            {"calibration": {"scale": 1, "low": 1.1, "high": 1.2, "rows": 3}},
            "calibration.low = 1.1: must be float <= 1",
        ),
        ({"rates": {"bf16_tflop_per_s": 1}}, "this field is not understood"),
        ({"gpu": OWN_GPU, "rates": RATES | {"bf16": {}}}, "rates.bf16.best_tflop_per_s = null: is missing"),
        ({"attention_kernel": 3}, "attention_kernel = 3: must be str | null, is int"),
        ({"overlap_expert_exchange": 1}, "overlap_expert_exchange = 1: must be bool, is int"),
        ({"norms": "eager"}, "norms = 'eager': must be 'fused' or 'op_by_op'"),
        ({"rotation": "half"}, "rotation = 'half': must be 'real' or 'complex'"),
        ({"products_in_fp8": "yes"}, "products_in_fp8 = 'yes': must be bool | null, is str"),
        ({"gpu": OWN_GPU, "rates": {"launch_seconds": 1e-6}}, "rates.bf16 = null: is missing and has no default"),
    ],
)
def test_what_a_file_cannot_say(fields: dict[str, Any], error: str, file: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(file, **fields)
    assert str(caught.value).startswith(f"{file}: ")
    assert error in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("", "not valid JSON: "),
        ('{"gpu": "H100", "power_watts": NaN}', "not valid JSON: "),
        ('{"gpu": "H100", "power_watts": 1e999}', "not valid JSON: "),
        ("[" * 3000, "not valid JSON: "),
        ('{"a":' * 5000 + "1" + "}" * 5000, "not valid JSON: nested too deeply"),
        ('{"gpu": "H100", "gpu": "A100"}', "gpu = 'A100': the field occurs twice in its object: give it once"),
        ('{"gpu": "H100", "node_link": {"gb_per_s": 1, "gb_per_s": 2}}', "gb_per_s = 2: the field occurs twice"),
        ('{"gpu": "H100", "power_watts": ' + "1" * 5000 + "}", "not valid JSON: "),
        ("\x00\xff", "not valid JSON: "),
        ("[]", 'must be a JSON object with a gpu, as {"gpu": "H100"}, but is []'),
        ("{}", 'must be a JSON object with a gpu, as {"gpu": "H100"}, but is {}'),
        ('"H100"', "must be a JSON object with a gpu"),
        ('{"power_watts": 500}', "gpu = null: is missing and has no default"),
        (" " * 10**6 + "{}", "a file of a cluster has at most 1000000 bytes"),
    ],
)
def test_what_is_no_file_of_a_cluster(content: str, error: str, file: Path) -> None:
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        read_cluster(file)
    assert str(caught.value).startswith(f"{file}: {error}")


def test_a_mark_before_utf_8_is_passed_over(file: Path) -> None:
    file.write_bytes(b'\xef\xbb\xbf{"gpu": "A100"}')
    assert read_cluster(file) == Cluster(gpu=find_gpu("A100"))


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.json: no such file"):
        read_cluster(tmp_path / "missing.json")
    with pytest.raises(UserError, match="must be a file of JSON"):
        read_cluster(tmp_path)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"gpu": "H100"}, "gpu = 'H100': must be a Gpu of the catalogue or of a file"),
        ({"gpus_per_node": True}, "gpus_per_node = true: must be a whole number from 1 to 1048576"),
        ({"norms": "eager"}, "norms = 'eager': must be one of fused, op_by_op"),
        ({"key_value_heads": "own"}, "key_value_heads = 'own': must be one of shared, repeated"),
        ({"attention_kernel": 3}, "attention_kernel = 3: must be the name of a kernel, as cuDNN"),
        ({"products_in_fp8": 1}, "products_in_fp8 = 1: must be true, false or none"),
        ({"overlap_expert_exchange": None}, "overlap_expert_exchange = null: must be true or false"),
        ({"power_watts": float("nan")}, "power_watts = nan: must be a number of watts above 0"),
        ({"power_watts": float("inf")}, "power_watts = inf: must be a number of watts above 0"),
        ({"power_watts": "500"}, "power_watts = '500': must be a number of watts above 0"),
    ],
)
def test_a_cluster_that_cannot_be(fields: dict[str, Any], error: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Cluster(**({"gpu": find_gpu("H100")} | fields))
    assert str(caught.value) == error
