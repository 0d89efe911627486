"""Hand-made clusters with round rates, for tests that state their arithmetic; and the groups of a layout's ranks."""

from collections import defaultdict
from itertools import product
from typing import Any

import msgspec

from counting.cost.cluster import Cluster
from counting.cost.hardware import find_gpu
from counting.cost.rates import AttentionRate, GpuRates, GroupedRate, Link, ProductRates
from counting.ranks.profile import Axis
from torch_models.layout import Layout

# (kernel, head size, length, forward, backward) in TFLOP/s.
ATTENTION = (
    ("FlashAttention-2", 64, 2048, 250, 200),
    ("FlashAttention-2", 128, 2048, 300, 200),
    ("FlashAttention-2", 128, 8192, 400, 300),
    ("cuDNN", 128, 8192, 500, 420),
)
RATES = GpuRates(
    bf16=ProductRates(
        best_tflop_per_s=800,
        sustained_tflop_per_s=700,
        best_power_exponent=0.7,
        sustained_power_exponent=0.6,
        source="made up",
    ),
    fp8=ProductRates(best_tflop_per_s=1400, sustained_tflop_per_s=1200, source="made up"),
    grouped=(
        GroupedRate(tokens_per_expert=256, share_of_peak=0.2, source="made up"),
        GroupedRate(tokens_per_expert=4096, share_of_peak=0.6, source="made up"),
    ),
    attention=tuple(
        AttentionRate(
            kernel=kernel,
            head_size=size,
            sequence_length=length,
            forward_tflop_per_s=forward,
            backward_tflop_per_s=backward,
            source="made up",
        )
        for kernel, size, length, forward, backward in ATTENTION
    ),
    memory_bandwidth_share=0.8,
    memory_bandwidth_source="made up",
    launch_seconds=5e-6,
    launch_source="made up",
    multiprocessors=100,
    multiprocessors_source="made up",
    beside_collectives_share=0.9,
    beside_collectives_source="made up",
    spread=0.02,
    spread_source="made up",
    node_link=Link(gb_per_s=400, achieved_gb_per_s=300, latency_seconds=2e-6, source="made up"),
    network_link=Link(gb_per_s=50, achieved_gb_per_s=40, latency_seconds=10e-6, source="made up"),
)


def made_cluster(cluster: dict[str, Any] | None = None, **rates: Any) -> Cluster:
    """An accelerator of 1000 TFLOP/s, 2000 in FP8, 2 TB/s and 700 W with `RATES`, of which `rates` replace some.

    No other of the catalogue is of its architecture.
    """
    for name in ("beside_collectives", "spread"):
        if name in rates or f"{name}_share" in rates:
            rates[f"{name}_source"] = None
    gpu = msgspec.structs.replace(
        find_gpu("H100"),
        name="made",
        architecture="none",
        peak_dense_tflop_per_s=1000,
        peak_dense_fp8_tflop_per_s=2000,
        memory_bandwidth_tb_per_s=2,
        power_watts=700,
        devices_per_node=8,
        rates=msgspec.structs.replace(RATES, **rates),
    )
    return Cluster(gpu=gpu, **(cluster or {}))


def groups_of(layout: Layout, axis: Axis) -> list[list[int]]:
    """The ranks of all groups of an axis, by counting through the coordinates of all ranks, outermost axis first."""
    by_experts = axis in ("ep", "expert_fsdp", "expert_dp")
    sizes = (
        {"pp": layout.pp, "expert_dp": layout.expert_replicas, "expert_fsdp": layout.expert_fsdp, "ep": layout.ep}
        if by_experts
        else {"pp": layout.pp, "dp": layout.replicas, "fsdp": layout.fsdp, "cp": layout.cp, "tp": layout.tp}
    )
    own = ("fsdp", "cp") if axis == "fsdp" else (axis,)
    groups = defaultdict(list)
    for rank, place in enumerate(product(*map(range, sizes.values()))):
        others = tuple(index for name, index in zip(sizes, place, strict=True) if name not in own)
        groups[others].append(rank)
    return list(groups.values())
