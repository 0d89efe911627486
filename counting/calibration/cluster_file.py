"""A cluster's file, written: what was measured of the machine, or a scale, put into what is known of it already."""

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from counting.calibration.found import FoundLink, FoundMachine, FoundProducts
from counting.cost.cluster import Calibration
from counting.cost.hardware import Gpu, GpuSources, load_gpus
from counting.cost.rates import AttentionRate, GpuRates, GroupedRate, Link, ProductRates
from counting.cost.step_time.machine import COLLECTIVE_CALL_SECONDS

# What belongs to the rates that measured ones replace: a scale that was fitted to estimates by them, a limit that slows
# them down (these were measured under whatever limit is set), and a kernel of their table of attention.
OF_OTHER_RATES = ("calibration", "power_watts", "attention_kernel")
_NEAR = 0.1  # two sizes of memory are those of one board, if they differ by less, relatively
_PARTS_OF_A_NAME = re.compile(r"[-\s]+")


def with_scale(known: Mapping[str, Any], calibration: Calibration) -> dict[str, Any]:
    """The file `known` with the scale."""
    return {**known, "calibration": msgspec.to_builtins(calibration)}


def with_machine(known: Mapping[str, Any], found: FoundMachine, gpu: Gpu | None) -> dict[str, Any]:
    """The file `known` with the rates that were measured; `gpu` is that of the file, None if it names none.

    Then it is the catalogue's, by the name that the driver gives and the size of memory, or else an entry of its own.
    `OF_OTHER_RATES` is left out.
    """
    entry = gpu or gpu_of(found) or own_entry(found)
    named: Any = entry.name if entry in load_gpus() else _given(entry)
    document = {**known, "gpu": known.get("gpu", named)}
    for field in OF_OTHER_RATES:
        document.pop(field, None)
    if found.gpus_per_node is not None:
        document["gpus_per_node"] = found.gpus_per_node
    document |= {field: _given(link) for field, link in measured_links(found, entry).items()}
    return {**document, "rates": _given(measured_rates(found, entry))}


def as_text(document: Mapping[str, Any]) -> str:
    """The file: JSON that a person can read and change."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def gpu_of(found: FoundMachine) -> Gpu | None:
    """The entry of the catalogue whose name is in the driver's and whose memory is as large; None if there is none.

    "NVIDIA A100-SXM4-80GB" is A100, and "NVIDIA H100 PCIe" H100-PCIe: of several names, the longest.
    """
    words = {word.lower() for word in _PARTS_OF_A_NAME.split(found.device_name)}
    alike = [
        gpu
        for gpu in load_gpus()
        if found.device == "cuda"
        and words.issuperset(_PARTS_OF_A_NAME.split(gpu.name.lower()))
        and abs(found.memory_bytes / gpu.device_capacity_bytes - 1) < _NEAR
    ]
    return max(alike, key=lambda gpu: len(gpu.name), default=None)


def own_entry(found: FoundMachine) -> Gpu:
    """An entry for a device that the catalogue lacks: its peaks are the best that was measured."""
    name = " ".join(re.sub(r"[^ -~]|[,=]", " ", found.device_name).split()) or found.device
    if name.lower() in {gpu.name.lower() for gpu in load_gpus()}:
        name = f"{name} here"
    threads = f", {found.threads} thread{'s' * (found.threads > 1)}" if found.device == "cpu" else ""
    best = found.products
    shape = " x ".join(map(str, best.best_shape))
    return Gpu(
        name=name,
        description=f"{name}{threads}, as measured",
        training_dtype=found.dtype,
        peak_dense_tflop_per_s=best.best_tflop_per_s,
        peak_dense_fp8_tflop_per_s=None,
        memory_gb=found.memory_bytes / 2**30,
        memory_bandwidth_tb_per_s=found.bytes.best_gb_per_s / 1e3,
        power_watts=None,
        price_usd_per_hour=None,
        sources=GpuSources(
            compute=f"measured: the best product in {found.dtype}, of {shape}; no vendor's figure",
            memory="the system's figure; bandwidth measured: the fastest op of any size, which caches may help",
            power=None,
            price=None,
        ),
    )


def measured_rates(found: FoundMachine, gpu: Gpu) -> GpuRates:
    """The rates of the machine, as the catalogue has them of others: of a board with several devices, of all of them.

    Shares are of the peaks of `gpu`.
    """
    devices = gpu.devices
    peak, bandwidth = gpu.peak_dense_tflop_per_s / devices, 1e3 * gpu.memory_bandwidth_tb_per_s / devices
    by_op = ", ".join(f"{name} {rate:.4g}" for name, rate in found.bytes.by_op.items())
    beside, spread = found.beside_collectives_share, found.spread
    # An entry with rates says whether tiles and waves are counted on its GPU.
    multiprocessors = devices * found.multiprocessors if found.multiprocessors and gpu.rates is None else None
    return GpuRates(
        bf16=_product_rates(found.products, found.dtype, devices),
        fp32=_product_rates(found.fp32_products, "float32", devices),
        grouped=tuple(
            GroupedRate(
                tokens_per_expert=row.tokens_per_expert,
                share_of_peak=min(1.0, row.tflop_per_s / peak),
                source="measured, forward and backward of 8 experts",
            )
            for row in found.grouped
        ),
        attention=tuple(
            AttentionRate(
                kernel=row.kernel,
                head_size=row.head_size,
                sequence_length=row.sequence_length,
                forward_tflop_per_s=devices * row.forward_tflop_per_s,
                backward_tflop_per_s=devices * row.backward_tflop_per_s,
                source="measured, causal, 16 heads",
            )
            for row in found.attention
        ),
        memory_bandwidth_share=min(1.0, found.bytes.sustained_gb_per_s / bandwidth),
        memory_bandwidth_source=f"measured beyond the caches, GB/s: {by_op}; as many bytes of each",
        launch_seconds=found.launch_seconds,
        launch_source="measured: ops on one number in a row",
        multiprocessors=multiprocessors,
        multiprocessors_source=None if multiprocessors is None else "as the driver reports them",
        beside_collectives_share=beside,
        beside_collectives_source=None if beside is None else "measured: products beside all-gathers",
        spread=spread or None,
        spread_source="measured: sustained products of all ranks" if spread else None,
    )


def _product_rates(found: FoundProducts, dtype: str, devices: int) -> ProductRates:
    largest = " x ".join(map(str, found.sustained_shape))
    return ProductRates(
        best_tflop_per_s=devices * found.best_tflop_per_s,
        sustained_tflop_per_s=devices * found.sustained_tflop_per_s,
        source=f"measured in {dtype}: the best of all sizes; sustained, a step's products up to {largest} in a row",
    )


def measured_links(found: FoundMachine, gpu: Gpu) -> dict[str, Link]:
    """The links of one GPU, by field of the cluster, from collectives by the formulas of `step_time.collectives`.

    Across nodes, the rings of a node leave it by the links of all its ranks: of the bytes that pass a rank, each link
    to the network carries one in so many as the node has ranks. Of the n - 1 steps of a ring, one a node but one
    cross the network. A link of the bound is as fast as the vendor says where that is faster than measured.
    """
    links: dict[str, Link] = {}
    library = "NCCL" if found.device == "cuda" else "gloo"
    for link in found.links:
        field, share = ("node_link", 1) if link.nodes == 1 else ("network_link", link.in_node)
        printed = getattr(gpu.rates, field, None)
        by_op = ", ".join(f"{name} {rate:.4g}" for name, rate in link.by_op.items())
        links[field] = Link(
            gb_per_s=max(link.best_gb_per_s / share, printed.gb_per_s if printed else 0.0),
            achieved_gb_per_s=link.achieved_gb_per_s / share,
            latency_seconds=_latency(link, links.get("node_link")),
            source=f"measured with {library} on {link.ranks} ranks, GB/s that leave a rank: {by_op}",
        )
    return links


def _latency(link: FoundLink, node_link: Link | None) -> float:
    """Seconds of a step: what the shortest call takes beyond the call itself, and beyond steps within a node."""
    across = link.nodes - 1
    steps = link.shortest_seconds - COLLECTIVE_CALL_SECONDS
    if not across:
        return max(0.0, steps / (link.ranks - 1))
    within = (node_link.latency_seconds or 0.0) if node_link else 0.0
    return max(0.0, (steps - (link.ranks - 1 - across) * within) / across)


def _given(struct: msgspec.Struct) -> dict[str, Any]:
    """The fields of a struct, and of structs in it, without those that have their default."""
    return {
        field.encode_name: _plain(getattr(struct, field.name))
        for field in msgspec.structs.fields(struct)
        if field.required or getattr(struct, field.name) != field.default
    }


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return _given(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
