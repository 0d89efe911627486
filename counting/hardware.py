"""The accelerators that a budget can buy, read from the catalogue `configs/gpus.json`.

A new accelerator is one entry there. Peaks are dense (no structured sparsity), in 10^12 FLOPs per second with one
multiply-add as 2 FLOPs; memory is in 10^9 bytes and bandwidth in 10^12 bytes per second, as vendors print them.
"""

from functools import cache
from importlib.resources import files
from typing import Annotated, Literal

import msgspec

from torch_models.errors import UserError, show_value

Positive = Annotated[float, msgspec.Meta(gt=0)]


class GpuSources(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where each group of numbers comes from."""

    compute: str
    memory: str
    price: str | None


class Gpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One accelerator. `price_usd_per_hour` is None where no price is known: it is asked for, never invented."""

    name: str
    description: str
    training_dtype: Literal["bfloat16", "float16"]  # the 16-bit format of the peak; chips before 2020 lack bfloat16
    peak_dense_tflop_per_s: Positive
    peak_dense_fp8_tflop_per_s: Positive | None
    memory_gb: Positive
    memory_bandwidth_tb_per_s: Positive
    price_usd_per_hour: Positive | None
    sources: GpuSources

    def __post_init__(self) -> None:
        assert (self.price_usd_per_hour is None) == (self.sources.price is None)

    @property
    def peak_flop_per_s(self) -> int:
        """Dense peak of the training dtype in FLOPs per second, exact."""
        return round(self.peak_dense_tflop_per_s * 10**12)


@cache
def load_gpus() -> tuple[Gpu, ...]:
    """Every accelerator of the catalogue, in its order; the file is read on the first call."""
    catalogue = files("configs").joinpath("gpus.json").read_bytes()
    gpus = msgspec.json.decode(catalogue, type=tuple[Gpu, ...])
    assert len({gpu.name.lower() for gpu in gpus}) == len(gpus)
    return gpus


def find_gpu(name: str) -> Gpu:
    """The accelerator called `name`, whatever its case; a UserError lists the known ones."""
    for gpu in load_gpus():
        if gpu.name.lower() == name.strip().lower():
            return gpu
    known = ", ".join(gpu.name for gpu in load_gpus())
    raise UserError(f"unknown GPU {show_value(name)}: choose from {known}, or add an entry to configs/gpus.json")
