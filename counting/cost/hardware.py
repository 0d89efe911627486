"""The accelerators that a budget can buy, read from the catalogue `configs/gpus.json`.

A new accelerator is one entry there. Peaks are dense (no structured sparsity), in 10^12 FLOPs per second with one
multiply-add as 2 FLOPs; memory is in GB and bandwidth in 10^12 bytes per second, as vendors print them; power is the
board's limit (thermal design power), in watts.
"""

from functools import cache
from typing import Annotated, Literal

import msgspec

from torch_models.errors import ArgumentError
from torch_models.fields.bundled import bundled_data

Positive = Annotated[float, msgspec.Meta(gt=0)]


class GpuSources(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where each group of numbers comes from."""

    compute: str
    memory: str
    power: str | None
    price: str | None


class Gpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One accelerator. A price or a power that is not known is None: asked for or left out, never invented."""

    name: str
    description: str
    training_dtype: Literal["bfloat16", "float16"]  # the 16-bit format of the peak; chips before 2020 lack bfloat16
    peak_dense_tflop_per_s: Positive
    peak_dense_fp8_tflop_per_s: Positive | None
    memory_gb: Positive
    memory_bandwidth_tb_per_s: Positive
    power_watts: Positive | None
    price_usd_per_hour: Positive | None
    sources: GpuSources

    def __post_init__(self) -> None:
        assert (self.price_usd_per_hour is None) == (self.sources.price is None)
        assert (self.power_watts is None) == (self.sources.power is None)

    @property
    def peak_flop_per_s(self) -> int:
        """Dense peak of the training dtype in FLOPs per second, exact."""
        return round(self.peak_dense_tflop_per_s * 10**12)

    @property
    def capacity_bytes(self) -> int:
        """Memory in bytes, one GB taken as 2^30: what vendors call 80 GB is 80 GiB, or a little less."""
        return round(self.memory_gb * 2**30)


@cache
def load_gpus() -> tuple[Gpu, ...]:
    """Every accelerator of the catalogue, in its order; the file is read on the first call."""
    catalogue = (bundled_data() / "gpus.json").read_bytes()
    gpus = msgspec.json.decode(catalogue, type=tuple[Gpu, ...])
    assert len({gpu.name.lower() for gpu in gpus}) == len(gpus)
    return gpus


def find_gpu(name: str, field: str = "gpus") -> Gpu:
    """The accelerator called `name`, whatever its case; a UserError lists the known ones.

    `field` is the argument that the error speaks of.
    """
    for gpu in load_gpus():
        if isinstance(name, str) and gpu.name.lower() == name.strip().lower():
            return gpu
    known = ", ".join(gpu.name for gpu in load_gpus())
    raise ArgumentError(field, name, f"is not known: choose from {known}, or add an entry to configs/gpus.json")
