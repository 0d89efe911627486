"""The rates of one GPU of a cluster, resolved once: what everything that takes time divides by."""

from typing import Literal

import msgspec

from counting.cost.cluster import Cluster
from counting.cost.hardware import Gpu
from counting.cost.rates import GpuRates, GroupedRate, Link, ProductRates
from counting.cost.rates_of_gpu import rates_of_gpu
from counting.cost.step_time.power import power_factor, slowest_factor
from torch_models.errors import ArgumentError

# `bound`: what no run beats; `estimate`: what a training step sees.
Style = Literal["bound", "estimate"]
NumberFormat = Literal["16-bit", "fp8", "fp32"]

DEFAULT_ATTENTION_KERNEL = "FlashAttention-2"  # torch's own fused attention

# Products of float32 run on the vector units, unless TF32 is asked for: 19.5 of 312 TFLOP/s of an A100 (NVIDIA A100
# Tensor Core GPU Architecture, table 3). For GPUs whose entry does not say.
FP32_SHARE = 1 / 16

# NCCL's own model of a ring with its Simple protocol: what a call takes before its first step, and a step over NVLink
# or the network (github.com/NVIDIA/nccl, src/graph/tuning.cc, `baseLat` and `hwLat`). Of links that do not say.
COLLECTIVE_CALL_SECONDS = 8.4e-6
NODE_STEP_SECONDS = 3.4e-6
NETWORK_STEP_SECONDS = 14.0e-6


class AttentionSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """Computed FLOPs a second of a fused attention kernel at one head size and length."""

    kernel: str
    head_size: int
    sequence_length: int
    forward: float
    backward: float


class GroupedSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """FLOPs a second of the products of experts, with so many tokens an expert."""

    tokens_per_expert: int
    flop_per_s: float


class LinkSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """A link of one GPU in one direction; `latency_seconds` is that of one step of a collective."""

    bytes_per_s: float
    latency_seconds: float


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """One device of a cluster in FLOP/s, bytes/s and seconds, with power limit and the slowest of the GPUs in them.

    Of a bound, `grouped` and `attention` are empty: both are products, and run at the rate of the best ones.
    """

    style: Style
    gpu: str
    rates_of: str  # the GPU whose rates these are
    products: dict[NumberFormat, float]  # FLOP/s of large products; without "fp8" the GPU has none
    grouped: tuple[GroupedSpeed, ...]  # in 16 bits, by ascending tokens
    grouped_fp8: tuple[GroupedSpeed, ...]
    attention: tuple[AttentionSpeed, ...]
    attention_kernel: str | None  # None: the one that the op names
    bytes_per_s: float
    launch_seconds: float
    multiprocessors: int | None  # None: no loss to tiles and waves
    beside_collectives_share: float  # of their speed that products keep while a collective runs beside them
    gpus_per_node: int
    node_link: LinkSpeed | None  # None: unknown
    network_link: LinkSpeed | None
    collective_call_seconds: float
    assumptions: tuple[str, ...]  # what took the place of what is unknown


def machine_of(cluster: Cluster, style: Style, *, ranks: int = 1, attention_kernel: str | None = None) -> Machine:
    """The rates of a GPU of `cluster`; `ranks` of them run, the slowest of which sets the pace of an estimate.

    A board of several devices has its rates divided among them: a rank runs on one. No rate of an estimate exceeds the
    bound's. `attention_kernel` is one in the GPU's table; None: the one that each op names.

    Raises `ArgumentError` if neither the GPU nor one of its architecture has rates, if the kernel is not in the table,
    and of an estimate for `power_watts` if it is unknown what a lower limit does.
    """
    gpu = cluster.gpu
    rates, rates_of = rates_of_gpu(gpu)
    _check_kernel(attention_kernel, rates, rates_of)
    best = _best_products(gpu, rates, cluster.power_watts)
    node_link, network_link = links_of(cluster, rates)
    is_bound = style == "bound"
    machine = Machine(
        style=style,
        gpu=gpu.name,
        rates_of=rates_of,
        products=best,
        grouped=(),
        grouped_fp8=(),
        attention=(),
        attention_kernel=attention_kernel,
        bytes_per_s=gpu.memory_bandwidth_tb_per_s * 1e12 / gpu.devices,
        launch_seconds=0.0,
        multiprocessors=None,
        beside_collectives_share=1.0,
        gpus_per_node=cluster.node_size,
        node_link=_link_speed(node_link, NODE_STEP_SECONDS, is_bound=is_bound),
        network_link=_link_speed(network_link, NETWORK_STEP_SECONDS, is_bound=is_bound),
        collective_call_seconds=0.0,
        assumptions=(),
    )
    return machine if is_bound else _sustained(machine, cluster, rates, ranks)


def links_of(cluster: Cluster, rates: GpuRates) -> tuple[Link | None, Link | None]:
    """The links within a node and across nodes: the cluster's own, else those of the catalogue's entry."""
    return cluster.node_link or rates.node_link, cluster.network_link or rates.network_link


def _check_kernel(kernel: str | None, rates: GpuRates, rates_of: str) -> None:
    known = dict.fromkeys(row.kernel for row in rates.attention)
    if kernel is not None and kernel not in known:
        instead = f"choose from {', '.join(known)}" if known else "leave it out"
        raise ArgumentError("attention_kernel", kernel, f"is not in the rates of {rates_of}: {instead}")


def _best_products(gpu: Gpu, rates: GpuRates, limit: float | None) -> dict[NumberFormat, float]:
    """FLOP/s of the best products of one device.

    Of fp32 they are at least those of 16 bits: a run may allow TF32, which is slower than these, and has no rates here.
    """

    def rate(products: ProductRates) -> float:
        best = products.best_tflop_per_s * power_factor(limit, gpu.power_watts, products.best_power_exponent)
        sustained = products.sustained_tflop_per_s
        # The exponents are of different measurements: far below the board's limit their curves may cross.
        kept = power_factor(limit, gpu.power_watts, products.sustained_power_exponent)
        return max(best, sustained * kept) * 1e12 / gpu.devices

    found: dict[NumberFormat, float] = {"16-bit": rate(rates.bf16)}
    found["fp32"] = found["16-bit"] if rates.fp32 is None else max(rate(rates.fp32), found["16-bit"])
    if rates.fp8 is not None:
        found["fp8"] = rate(rates.fp8)
    return found


def _sustained(best: Machine, cluster: Cluster, rates: GpuRates, ranks: int) -> Machine:
    """The estimate's machine; `best` has the bound's rates."""
    gpu, assumptions = cluster.gpu, []
    slower = slowest_factor(rates.spread, ranks)
    if rates.spread is None and ranks > 1:
        assumptions.append("all GPUs are equally fast")

    def kept(products: ProductRates) -> float:
        """The share of their rates that products of one device keep."""
        exponent = products.sustained_power_exponent or rates.bf16.sustained_power_exponent
        _check_power(cluster, exponent)
        return power_factor(cluster.power_watts, gpu.power_watts, exponent) / slower / gpu.devices

    def rate(products: ProductRates, name: NumberFormat) -> float:
        return min(products.sustained_tflop_per_s * 1e12 * kept(products), best.products[name])

    share = kept(rates.bf16)
    products: dict[NumberFormat, float] = {"16-bit": rate(rates.bf16, "16-bit")}
    products["fp32"] = products["16-bit"] * FP32_SHARE if rates.fp32 is None else rate(rates.fp32, "fp32")
    if rates.fp8 is not None:
        products["fp8"] = rate(rates.fp8, "fp8")
    most = best.products["16-bit"]
    if not rates.grouped:
        assumptions.append("products of experts run as fast as others of their size")
    if not rates.attention:
        assumptions.append("attention runs as fast as products")
    elif best.attention_kernel is None and all(row.kernel != DEFAULT_ATTENTION_KERNEL for row in rates.attention):
        assumptions.append(f"attention runs as fast as that of {rates.attention[0].kernel}")
    if rates.beside_collectives_share is None:
        assumptions.append("collectives beside products do not slow them down")
    return msgspec.structs.replace(
        best,
        products=products,
        grouped=_grouped(rates.grouped, gpu.peak_dense_tflop_per_s * share, most),
        grouped_fp8=_grouped(
            rates.grouped_fp8,
            (gpu.peak_dense_fp8_tflop_per_s or 0) * (share if rates.fp8 is None else kept(rates.fp8)),
            best.products.get("fp8", most),
        ),
        attention=tuple(
            AttentionSpeed(
                kernel=row.kernel,
                head_size=row.head_size,
                sequence_length=row.sequence_length,
                forward=min(row.forward_tflop_per_s * 1e12 * share, most),
                backward=min(row.backward_tflop_per_s * 1e12 * share, most),
            )
            for row in rates.attention
        ),
        bytes_per_s=best.bytes_per_s * rates.memory_bandwidth_share,
        launch_seconds=rates.launch_seconds,
        multiprocessors=None if rates.multiprocessors is None else max(rates.multiprocessors // gpu.devices, 1),
        beside_collectives_share=rates.beside_collectives_share or 1.0,
        collective_call_seconds=COLLECTIVE_CALL_SECONDS,
        assumptions=tuple(assumptions),
    )


def _grouped(rows: tuple[GroupedRate, ...], peak_tflop_per_s: float, most: float) -> tuple[GroupedSpeed, ...]:
    return tuple(
        GroupedSpeed(
            tokens_per_expert=row.tokens_per_expert, flop_per_s=min(row.share_of_peak * peak_tflop_per_s * 1e12, most)
        )
        for row in sorted(rows, key=lambda row: row.tokens_per_expert)
    )


def _check_power(cluster: Cluster, exponent: float | None) -> None:
    limit, board = cluster.power_watts, cluster.gpu.power_watts
    if limit is None or limit == board:
        return
    if board is None or exponent is None:
        name = cluster.gpu.name
        rule = f"what a lower limit does to the products of {name} is unknown: leave it out, or use measured rates"
        raise ArgumentError("power_watts", limit, rule)


def _link_speed(link: Link | None, step_seconds: float, *, is_bound: bool) -> LinkSpeed | None:
    """The speed of a link: as printed of a bound, else as achieved, at most as printed."""
    if link is None:
        return None
    if is_bound:
        return LinkSpeed(bytes_per_s=link.gb_per_s * 1e9, latency_seconds=0.0)
    latency = step_seconds if link.latency_seconds is None else link.latency_seconds
    achieved = link.gb_per_s if link.achieved_gb_per_s is None else min(link.achieved_gb_per_s, link.gb_per_s)
    return LinkSpeed(bytes_per_s=achieved * 1e9, latency_seconds=latency)
