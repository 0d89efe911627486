"""The whole measurement of one machine, part after part, each for its share of the time."""

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from counting.calibration.found import DeviceKind, FoundMachine
from counting.calibration.machine.attention import measure_attention
from counting.calibration.machine.collectives import measure_beside, measure_links, relative_spread
from counting.calibration.machine.memory_ops import measure_bytes, measure_launch
from counting.calibration.machine.products import measure_grouped, measure_products
from counting.calibration.machine.ranks import Ranks

# Part -> its share of the time.
_SHARES = {"products": 0.3, "fp32_products": 0.1, "grouped": 0.15, "attention": 0.3, "bytes": 0.15}
_FEWEST_OF_A_SPREAD = 4  # ranks: a deviation of fewer says nothing
_BFLOAT16_CAPABILITY = (8, 0)


def device_here() -> DeviceKind:
    """``cuda`` if torch can use such a device, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def measure_machine(ranks: Ranks, seconds: float, show: Callable[[str], None]) -> FoundMachine:
    """Measure this process's device for about `seconds`, and then the collectives of all ranks; `show` gets progress.

    Every rank measures, since devices that work alone are faster than those whose neighbours work too; rates are those
    of this rank, and the links' those of the slowest one.
    """
    kind = device_here()
    device = torch.device(kind, ranks.local_rank) if kind == "cuda" else torch.device("cpu")
    dtype = _dtype(device)
    of_dtype: Literal["bfloat16", "float16"] = "bfloat16" if dtype == torch.bfloat16 else "float16"
    products = measure_products(device, dtype, _SHARES["products"] * seconds, show)
    fp32_products = measure_products(device, torch.float32, _SHARES["fp32_products"] * seconds, show)
    show("measuring products of experts ...")
    grouped = measure_grouped(device, dtype, _SHARES["grouped"] * seconds, products)
    attention = measure_attention(device, dtype, _SHARES["attention"] * seconds, show)
    show("measuring copies and other ops by bytes ...")
    by_bytes = measure_bytes(device, dtype, _SHARES["bytes"] * seconds)
    launch = measure_launch(device)
    beside = spread = None
    if ranks.world > 1:
        show(f"measuring collectives of {ranks.world} ranks ...")
        beside = measure_beside(ranks, device, dtype, products.sustained_shape[0])
        if ranks.world >= _FEWEST_OF_A_SPREAD:
            spread = relative_spread(ranks, device, products.sustained_tflop_per_s)
    return FoundMachine(
        device=kind,
        device_name=_name(device),
        threads=torch.get_num_threads() if kind == "cpu" else 1,
        memory_bytes=_memory_bytes(device),
        dtype=of_dtype,
        products=products,
        fp32_products=fp32_products,
        grouped=grouped,
        attention=attention,
        bytes=by_bytes,
        launch_seconds=launch,
        multiprocessors=torch.cuda.get_device_properties(device).multi_processor_count if kind == "cuda" else None,
        beside_collectives_share=beside,
        spread=spread,
        links=measure_links(ranks, device, dtype),
        gpus_per_node=ranks.in_node if ranks.world > 1 else None,
    )


def _dtype(device: torch.device) -> torch.dtype:
    """The 16-bit format that the device multiplies: GPUs from before 2020 have float16 alone."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < _BFLOAT16_CAPABILITY:
        return torch.float16
    return torch.bfloat16


def _name(device: torch.device) -> str:
    """The device's name: a GPU's by its driver, a CPU's by the system, printable and on one line."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    named = ""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        named = next((line.partition(":")[2] for line in lines if line.startswith("model name")), "")
    return named.strip() or platform.processor() or platform.machine() or "CPU"


def _memory_bytes(device: torch.device) -> int:
    """The device's memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
