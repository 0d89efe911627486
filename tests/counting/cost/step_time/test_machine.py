"""Rates that are resolved: power limit, the slowest of the GPUs, two styles, what is unknown."""

import random

import msgspec
import pytest

from counting.cost.cluster import Cluster
from counting.cost.hardware import Gpu, find_gpu, load_gpus
from counting.cost.rates import Link, ProductRates
from counting.cost.step_time.machine import LinkSpeed, machine_of
from counting.cost.step_time.power import expected_maximum, power_factor, slowest_factor
from tests.counting.cost.step_time.clusters import RATES, made_cluster
from torch_models.errors import ArgumentError


def test_a_power_limit_lowers_products_by_a_power_of_its_share() -> None:
    # H100 SXM of 700 W at 350 W: 794.5 -> 493 TFLOP/s best, 720 -> 472 sustained (torch-performance-test-data, issues
    # 79 and 95). log(493 / 794.5) / log(1 / 2) = 0.6885; log(472 / 720) / log(1 / 2) = 0.6092.
    assert 794.5 * power_factor(350, 700, 0.6885) == pytest.approx(493, rel=1e-3)
    assert 720 * power_factor(350, 700, 0.6092) == pytest.approx(472, rel=1e-3)
    # At 500 W: 720 x (5/7)^0.6092 = 720 x 0.8147 = 586.6.
    assert 720 * power_factor(500, 700, 0.6092) == pytest.approx(586.6, rel=1e-3)


@pytest.mark.parametrize(
    "unknown", [(None, 700, 0.7), (500, None, 0.7), (500, 700, None), (700, 700, 0.7), (800, 700, 0.7)]
)
def test_no_limit_changes_nothing(unknown: tuple[float | None, float | None, float | None]) -> None:
    assert power_factor(*unknown) == 1


# Expected largest of n standard normal numbers: 0, 1 / sqrt(pi), 3 / (2 sqrt(pi)); the others from Harter 1961,
# "Expected values of normal order statistics", Biometrika 48, table 1.
@pytest.mark.parametrize(("number", "exact"), [(1, 0), (2, 0.56419), (3, 0.84628), (8, 1.42360), (100, 2.50759)])
def test_the_largest_of_some_normal_numbers(number: int, exact: float) -> None:
    assert expected_maximum(number) == pytest.approx(exact, abs=0.03)


def test_the_slowest_of_many_takes_longer() -> None:
    # Blom: of 8 the quantile 7.625 / 8.25 = 0.92424, which is 1.4342 standard deviations.
    assert slowest_factor(0.02, 8) == pytest.approx(1 + 0.02 * 1.4342, abs=1e-5)
    assert slowest_factor(0.02, 1) == 1
    assert slowest_factor(None, 8) == 1
    factors = [slowest_factor(0.02, 2**exponent) for exponent in range(21)]
    assert factors == sorted(factors)


def test_the_bound_has_best_products_and_printed_speeds() -> None:
    machine = machine_of(made_cluster(), "bound", ranks=64)
    assert machine.products == {"16-bit": 800e12, "fp8": 1400e12, "fp32": 800e12}  # no rate of fp32: not below 16 bits
    assert machine.bytes_per_s == 2e12
    assert (machine.launch_seconds, machine.beside_collectives_share, machine.collective_call_seconds) == (0, 1, 0)
    assert machine.node_link is not None
    assert machine.network_link is not None
    assert (machine.node_link.bytes_per_s, machine.network_link.bytes_per_s) == (400e9, 50e9)
    assert (machine.node_link.latency_seconds, machine.network_link.latency_seconds) == (0, 0)
    assert machine.multiprocessors is None


@pytest.mark.parametrize(("best", "bound"), [(60, 800), (900, 900)])
def test_the_bound_of_fp32_allows_tf32(best: float, bound: float) -> None:
    """It is not below 16 bits, whatever fp32 reaches without TF32; on a CPU fp32 may be the faster one."""
    fp32 = ProductRates(best_tflop_per_s=best, sustained_tflop_per_s=50, source="made up")
    cluster = made_cluster(fp32=fp32)
    assert machine_of(cluster, "bound").products["fp32"] == bound * 1e12
    assert machine_of(cluster, "estimate").products["fp32"] == 50e12


def test_the_estimate_has_sustained_rates_of_the_slowest_gpu_at_its_power_limit() -> None:
    machine = machine_of(made_cluster({"power_watts": 350}), "estimate", ranks=8)
    # (1 / 2)^0.6 = 0.65975 and 1 + 0.02 x 1.4342 = 1.02868: 0.64136 of each rate of arithmetic.
    share = 0.5**0.6 / slowest_factor(0.02, 8)
    assert share == pytest.approx(0.64136, abs=1e-5)
    assert machine.products["16-bit"] == pytest.approx(700e12 * share)
    assert machine.products["fp8"] == pytest.approx(1200e12 * share)  # which has no exponent of its own
    assert machine.products["fp32"] == pytest.approx(700e12 * share / 16)
    assert [row.flop_per_s for row in machine.grouped] == pytest.approx([200e12 * share, 600e12 * share])
    assert machine.attention[0].forward == pytest.approx(250e12 * share)
    # Memory and links keep their speed: 0.8 x 2 TB/s.
    assert machine.bytes_per_s == pytest.approx(1.6e12)
    assert machine.node_link is not None
    assert (machine.node_link.bytes_per_s, machine.node_link.latency_seconds) == (300e9, 2e-6)
    assert machine.assumptions == ()


def test_a_board_of_two_devices_is_divided() -> None:
    one = made_cluster()
    board = msgspec.structs.replace(one, gpu=msgspec.structs.replace(one.gpu, devices=2, driver_memory_bytes=2**35))
    for style in ("bound", "estimate"):
        whole, half = machine_of(one, style), machine_of(board, style)
        assert half.products == pytest.approx({name: rate / 2 for name, rate in whole.products.items()})
        assert half.bytes_per_s == whole.bytes_per_s / 2
    assert half.multiprocessors == 50
    assert half.attention[0].backward == whole.attention[0].backward / 2


def test_the_clusters_own_links_and_node_go_before_the_catalogues() -> None:
    own = Link(gb_per_s=25)
    machine = machine_of(made_cluster({"network_link": own, "gpus_per_node": 4}), "estimate")
    assert machine.network_link is not None
    # Nothing measured: as printed, with NCCL's 14 us a step.
    assert (machine.network_link.bytes_per_s, machine.network_link.latency_seconds) == (25e9, 14e-6)
    assert machine.gpus_per_node == 4
    unsaid = machine_of(made_cluster({"node_link": Link(gb_per_s=100)}), "estimate").node_link
    assert unsaid == LinkSpeed(bytes_per_s=100e9, latency_seconds=3.4e-6)
    assert machine_of(made_cluster(), "estimate").gpus_per_node == 8


def test_what_is_unknown_is_said() -> None:
    cluster = made_cluster(grouped=(), attention=(), beside_collectives_share=None, spread=None)
    assert machine_of(cluster, "estimate", ranks=8).assumptions == (
        "all GPUs are equally fast",
        "products of experts run as fast as others of their size",
        "attention runs as fast as products",
        "collectives beside products do not slow them down",
    )
    without_default = tuple(row for row in RATES.attention if row.kernel == "cuDNN")
    cluster = made_cluster(attention=without_default)
    assert machine_of(cluster, "estimate").assumptions == ("attention runs as fast as that of cuDNN",)
    assert machine_of(cluster, "estimate", attention_kernel="cuDNN").assumptions == ()


def test_a_gpu_without_rates_is_refused() -> None:
    cluster = made_cluster()
    bare = msgspec.structs.replace(cluster, gpu=msgspec.structs.replace(cluster.gpu, rates=None))
    with pytest.raises(ArgumentError, match="gpus = 'made': has no rates"):
        machine_of(bare, "bound")


def test_a_gpu_without_rates_takes_those_of_its_architecture() -> None:
    h100 = find_gpu("H100")
    other = msgspec.structs.replace(h100, name="half", rates=None, peak_dense_tflop_per_s=989 / 2)
    machine = machine_of(Cluster(gpu=other), "bound")
    assert h100.rates is not None
    assert machine.rates_of != "half"
    assert machine.products["16-bit"] == pytest.approx(h100.rates.bf16.best_tflop_per_s / 2 * 1e12)
    assert machine.node_link is None


def test_a_power_limit_of_unknown_effect_is_refused_by_the_estimate_alone() -> None:
    products = ProductRates(best_tflop_per_s=800, sustained_tflop_per_s=700, source="made up")
    cluster = made_cluster({"power_watts": 500}, bf16=products)
    with pytest.raises(ArgumentError, match="power_watts = 500: what a lower limit does to the products of made"):
        machine_of(cluster, "estimate")
    assert machine_of(cluster, "bound").products["16-bit"] == 800e12
    at_the_limit = made_cluster({"power_watts": 700}, bf16=products)
    assert machine_of(at_the_limit, "estimate").products["16-bit"] == 700e12


def test_where_the_curves_of_a_power_limit_cross_the_bound_has_the_faster() -> None:
    # At half of the power: best 800 / 2 = 400, sustained 700 x (1 / 2)^0.1 = 653.1.
    crossing = ProductRates(
        best_tflop_per_s=800,
        sustained_tflop_per_s=700,
        best_power_exponent=1,
        sustained_power_exponent=0.1,
        source="made up",
    )
    cluster = made_cluster({"power_watts": 350}, bf16=crossing)
    assert machine_of(cluster, "bound").products["16-bit"] == pytest.approx(700e12 * 0.5**0.1)


def test_products_of_experts_are_by_ascending_tokens() -> None:
    machine = machine_of(made_cluster(grouped=RATES.grouped[::-1]), "estimate")
    assert [row.tokens_per_expert for row in machine.grouped] == [256, 4096]


def test_no_rate_of_an_estimate_exceeds_the_bounds() -> None:
    draw = random.Random(0)
    for _ in range(200):
        best = draw.uniform(1, 1000)
        products = ProductRates(
            best_tflop_per_s=best,
            sustained_tflop_per_s=draw.uniform(0.1, 1) * best,
            best_power_exponent=draw.uniform(0.1, 1),
            sustained_power_exponent=draw.uniform(0.1, 1),
            source="drawn",
        )
        link = Link(gb_per_s=draw.uniform(1, 900), achieved_gb_per_s=draw.uniform(0.1, 1))
        cluster = made_cluster({"power_watts": draw.uniform(140, 700)}, bf16=products, fp8=None, node_link=link)
        bound, estimate = (
            machine_of(cluster, style, ranks=draw.choice([1, 8, 4096])) for style in ("bound", "estimate")
        )
        assert all(rate <= bound.products[name] for name, rate in estimate.products.items())
        assert all(row.flop_per_s <= bound.products["16-bit"] for row in estimate.grouped)
        assert all(max(row.forward, row.backward) <= bound.products["16-bit"] for row in estimate.attention)
        assert bound.node_link is not None
        assert estimate.node_link is not None
        assert estimate.node_link.bytes_per_s <= bound.node_link.bytes_per_s
        assert estimate.bytes_per_s <= bound.bytes_per_s


def test_a_kernel_of_attention_without_rates_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"FlashAttention-9.*rates of made: choose from FlashAttention-2, cuDNN"):
        machine_of(made_cluster(), "bound", attention_kernel="FlashAttention-9")
    assert machine_of(made_cluster(), "bound", attention_kernel="cuDNN").attention_kernel == "cuDNN"
    with pytest.raises(ArgumentError, match="rates of made: leave it out"):
        machine_of(made_cluster(attention=()), "bound", attention_kernel="cuDNN")


@pytest.mark.parametrize("gpu", [gpu for gpu in load_gpus() if gpu.rates is not None], ids=lambda gpu: gpu.name)
def test_no_rate_of_the_catalogue_exceeds_its_bound(gpu: Gpu) -> None:
    bound, estimate = (machine_of(Cluster(gpu=gpu), style, ranks=64) for style in ("bound", "estimate"))
    assert bound.products["16-bit"] <= gpu.peak_flop_per_s / gpu.devices
    assert set(bound.products) == set(estimate.products)
    assert all(0 < rate <= bound.products[name] for name, rate in estimate.products.items())
    assert all(0 < row.flop_per_s <= bound.products["16-bit"] for row in estimate.grouped)
    assert all(0 < row.flop_per_s <= bound.products["fp8"] for row in estimate.grouped_fp8)
    assert all(0 < max(row.forward, row.backward) <= bound.products["16-bit"] for row in estimate.attention)
    assert 0 < estimate.bytes_per_s <= bound.bytes_per_s
    assert 0 < estimate.beside_collectives_share <= bound.beside_collectives_share == 1
