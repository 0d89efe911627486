"""The accelerators that a budget can buy, read from the catalogue `configs/gpus.json` or a file of the user's own.

A new accelerator is one entry there. Peaks are dense (no structured sparsity), in 10^12 FLOPs per second with one
multiply-add as 2 FLOPs; memory is in GB and bandwidth in 10^12 bytes per second, as vendors print them; power is the
board's limit (thermal design power), in watts. What a process finds is apart from what vendors print: a board of two
dies is two devices, and a driver keeps some of each device's memory for itself.
"""

import os
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from torch_models.errors import ArgumentError, ConfigError, UserError, show_name, show_value
from torch_models.fields.bundled import bundled_data

MAX_GPU_FILE_BYTES = 1_000_000
FLASH_ATTENTION_CAPABILITY = 8.0  # CUDA compute capability
Positive = Annotated[float, msgspec.Meta(gt=0)]
WholePositive = Annotated[int, msgspec.Meta(gt=0)]


class GpuSources(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where each group of numbers comes from."""

    compute: str
    memory: str
    driver_memory: str | None = None
    context: str | None = None
    power: str | None
    price: str | None


SOURCED = {  # a field that may be unknown -> its source
    "driver_memory_bytes": "driver_memory",
    "context_bytes": "context",
    "power_watts": "power",
    "price_usd_per_hour": "price",
}


class Gpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One accelerator. A price or a power that is not known is None: asked for or left out, never invented.

    Raises `ConfigError` for a number without its source, and a source without its number.
    """

    name: str
    description: str
    compute_capability: Positive | None = None  # of CUDA, as 8.9; None for what is not NVIDIA's
    training_dtype: Literal["bfloat16", "float16"]  # the 16-bit format of the peak; chips before 2020 lack bfloat16
    peak_dense_tflop_per_s: Positive
    peak_dense_fp8_tflop_per_s: Positive | None
    memory_gb: Positive  # of the board
    devices: WholePositive = 1  # that a process sees of one board: each die of a board of two is one
    driver_memory_bytes: WholePositive | None = None  # of one device, as its driver reports it to a process
    context_bytes: WholePositive | None = None  # that a PyTorch process takes of it before its first tensor
    memory_bandwidth_tb_per_s: Positive
    power_watts: Positive | None
    price_usd_per_hour: Positive | None
    sources: GpuSources

    def __post_init__(self) -> None:
        for field, name in SOURCED.items():
            number, source = getattr(self, field), getattr(self.sources, name)
            if number is not None and source is None:
                raise ConfigError(f"sources.{name}", source, f"must say where {field} ({number:,}) comes from")
            if number is None and source is not None:
                raise ConfigError(f"sources.{name}", source, f"is the source of {field}, which is not given")

    @property
    def fuses_grouped_queries(self) -> bool:
        """Whether PyTorch has a fused attention kernel for it whose query heads share key and value heads.

        Flash attention needs compute capability 8.0, and the memory-efficient kernel takes no shared heads
        (github.com/pytorch/pytorch, aten/src/ATen/native/transformers/cuda/sdp_utils.cpp). True where the capability
        is not known.
        """
        return self.compute_capability is None or self.compute_capability >= FLASH_ATTENTION_CAPABILITY

    @property
    def peak_flop_per_s(self) -> int:
        """Dense peak of the training dtype in FLOPs per second, exact."""
        return round(self.peak_dense_tflop_per_s * 10**12)

    @property
    def device_capacity_bytes(self) -> int:
        """Memory of one device: what its driver reports, else its share of the board's, one vendor's GB taken as 2^30.

        What vendors call 80 GB is 80 GiB, or a little less.
        """
        return self.driver_memory_bytes or round(self.memory_gb * 2**30) // self.devices

    @property
    def capacity_bytes(self) -> int:
        """Memory of all devices of the board."""
        return self.devices * self.device_capacity_bytes


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


def read_gpus(path: str | os.PathLike[str]) -> tuple[Gpu, ...]:
    """The accelerators of a file of the user's own: a JSON list of entries as in `configs/gpus.json`.

    Raises UserError for a file that cannot be read or is no such list, for an entry of which a field is missing, not
    known or out of range, and for a name that stands there twice or in the catalogue too.
    """
    shown = show_name(os.fspath(path))
    entries = _entries(path, shown)
    gpus: list[Gpu] = []
    known = {gpu.name.lower(): "in the catalogue" for gpu in load_gpus()}
    for number, fields in enumerate(entries, 1):
        name = fields.get("name") if isinstance(fields, dict) else None
        where = f"{shown}: entry {number}" + (f" ({name})" if isinstance(name, str) else "")
        if not isinstance(fields, dict):
            raise UserError(f"{where}: must be a JSON object of a GPU's fields, but is {show_value(fields)}")
        try:
            gpu = _entry(fields)
        except ConfigError as error:
            raise error.in_file(where) from None
        if taken := known.get(gpu.name.lower()):
            raise ConfigError("name", gpu.name, f"stands {taken} too: give it another name", where)
        known[gpu.name.lower()] = f"in entry {number}"
        gpus.append(gpu)
    return tuple(gpus)


def _entries(path: str | os.PathLike[str], shown: str) -> list[Any]:
    """What the list of the file holds, at least one entry."""
    try:
        if not Path(path).is_file():
            raise UserError(f"{shown}: {'must be a file of JSON' if Path(path).exists() else 'no such file'}")
        with Path(path).open("rb") as file:
            content = file.read(MAX_GPU_FILE_BYTES + 1)
        if len(content) > MAX_GPU_FILE_BYTES:
            raise UserError(f"{shown}: a file of GPUs has at most {MAX_GPU_FILE_BYTES} bytes")
        entries = msgspec.json.decode(content)
    except OSError as error:
        raise UserError(f"{shown}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{shown}: not valid JSON: {error}") from None
    if not isinstance(entries, list) or not entries:
        rule = "must be a JSON list of entries as in configs/gpus.json"
        raise UserError(f"{shown}: {rule}, but is {show_value(entries)}")
    return entries


def _entry(fields: dict[str, Any]) -> Gpu:
    """One entry as a `Gpu`, or a `ConfigError` that names field, value and rule."""
    from torch_models.fields.config import convert  # imports every family, and a budget needs none

    sources = fields.get("sources")
    if isinstance(sources, dict):
        try:
            convert(sources, GpuSources)
        except ConfigError as error:
            raise ConfigError(f"sources.{error.field}", error.value, error.rule) from None
    gpu = convert(fields, Gpu)
    if gpu.name != gpu.name.strip() or not gpu.name or not gpu.name.isprintable() or {",", "="} & set(gpu.name):
        raise ConfigError("name", gpu.name, "must be a name on one line, without commas, equals signs or outer spaces")
    return gpu
