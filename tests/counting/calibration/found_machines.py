"""Machines as if measured, with round numbers."""

from typing import Any

from counting.calibration.found import (
    FoundAttention,
    FoundBytes,
    FoundGrouped,
    FoundLink,
    FoundMachine,
    FoundProducts,
)

NODE = FoundLink(
    ranks=8,
    in_node=8,
    best_gb_per_s=360,
    achieved_gb_per_s=320,
    shortest_seconds=8.4e-6 + 7 * 3e-6,
    by_op={"all_gather": 320, "reduce_scatter": 320, "all_reduce": 340, "all_to_all": 300},
)
# Of 15 steps across two nodes one crosses the network.
ACROSS = FoundLink(
    ranks=16,
    in_node=8,
    best_gb_per_s=336,
    achieved_gb_per_s=280,
    shortest_seconds=8.4e-6 + 14 * 3e-6 + 20e-6,
    by_op={"all_gather": 280, "reduce_scatter": 280, "all_reduce": 300, "all_to_all": 60},
)


def found_machine(**changes: Any) -> FoundMachine:
    """A CPU, or with changes another device."""
    fields: dict[str, Any] = {
        "device": "cpu",
        "device_name": "AMD EPYC, 64-Core=Processor",
        "threads": 2,
        "memory_bytes": 24 * 2**30,
        "dtype": "bfloat16",
        "products": FoundProducts(
            best_tflop_per_s=0.5,
            sustained_tflop_per_s=0.4,
            best_shape=(512, 512, 512),
            sustained_shape=(2048, 2048, 6144),
        ),
        "fp32_products": FoundProducts(
            best_tflop_per_s=0.2,
            sustained_tflop_per_s=0.18,
            best_shape=(256, 256, 256),
            sustained_shape=(1024, 1024, 3072),
        ),
        "grouped": (FoundGrouped(tokens_per_expert=128, tflop_per_s=0.25),),
        "attention": (
            FoundAttention(
                kernel="torch's flash attention for CPUs",
                head_size=64,
                sequence_length=512,
                forward_tflop_per_s=0.06,
                backward_tflop_per_s=0.08,
            ),
        ),
        "bytes": FoundBytes(best_gb_per_s=80, sustained_gb_per_s=20, by_op={"copy": 20, "add": 20}),
        "launch_seconds": 2e-6,
    }
    return FoundMachine(**fields | changes)
