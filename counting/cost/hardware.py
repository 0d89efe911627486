"""The GPUs and other accelerators of the catalogue `configs/gpus.json`, or of a user's file in the same format.

To add an accelerator, add an entry to that file. Peaks are dense (no structured sparsity), in 10^12 FLOPs per second,
where one multiply-add is 2 FLOPs. Memory is in GB and bandwidth in 10^12 bytes per second, as printed by the vendor.
Power is the board's limit (thermal design power) in watts. A process sees other numbers than the vendor prints: a
board with two dies appears as two devices, and the driver reserves a part of each device's memory.
"""

import codecs
import json
import os
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from counting.cost.rates import GpuRates, check_rates
from torch_models.errors import ArgumentError, ConfigError, UserError, show_json_error, show_name, show_value
from torch_models.fields.bundled import bundled_data

MAX_GPU_FILE_BYTES = 1_000_000
FLASH_ATTENTION_CAPABILITY = 8.0  # CUDA compute capability
# No device, board or rack is beyond these; a number beyond them is in another unit.
TeraFlopsPerSecond = Annotated[float, msgspec.Meta(ge=1e-3, le=1e6)]
Gigabytes = Annotated[float, msgspec.Meta(ge=1e-3, le=1e6)]
TerabytesPerSecond = Annotated[float, msgspec.Meta(ge=1e-6, le=1e6)]
Watts = Annotated[float, msgspec.Meta(ge=0.1, le=1e6)]
DollarsPerHour = Annotated[float, msgspec.Meta(ge=0.01, le=1e6)]
Capability = Annotated[float, msgspec.Meta(ge=1, le=100)]
Devices = Annotated[int, msgspec.Meta(ge=1, le=1000)]
WholeBytes = Annotated[int, msgspec.Meta(ge=1, le=10**15)]
MOST_OF_THE_BOARD = 1.02  # drivers report a little more than vendors print of a few boards, a GB taken as 2^30


class GpuSources(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The source of each group of numbers in a `Gpu`."""

    compute: str
    memory: str
    driver_memory: str | None = None
    context: str | None = None
    communicator: str | None = None
    exchange: str | None = None
    node: str | None = None
    power: str | None
    price: str | None


SOURCED = {  # optional field of `Gpu` -> field of `GpuSources`
    "driver_memory_bytes": "driver_memory",
    "context_bytes": "context",
    "communicator_bytes": "communicator",
    "exchange_bytes": "exchange",
    "devices_per_node": "node",
    "power_watts": "power",
    "price_usd_per_hour": "price",
}


class Gpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One accelerator. A number that is unknown is None; it is never estimated.

    Raises `ConfigError` if a field of `SOURCED` has a value but no source, or a source but no value.
    """

    name: str
    description: str
    compute_capability: Capability | None = None  # CUDA's, for example 8.9; None for GPUs that are not NVIDIA's
    training_dtype: Literal["bfloat16", "float16"]  # the 16-bit format of the peak; GPUs from before 2020 lack bfloat16
    peak_dense_tflop_per_s: TeraFlopsPerSecond
    peak_dense_fp8_tflop_per_s: TeraFlopsPerSecond | None
    memory_gb: Gigabytes  # of the board
    devices: Devices = 1  # on one board, as a process sees them; a board with two dies has two
    driver_memory_bytes: WholeBytes | None = None  # memory of one device as the driver reports it
    context_bytes: WholeBytes | None = None  # memory that a PyTorch process occupies before its first tensor
    communicator_bytes: WholeBytes | None = None  # that the library of collectives takes for each group of ranks
    exchange_bytes: WholeBytes | None = None  # and for one whose ranks exchange all to all, beyond that
    devices_per_node: Devices | None = None  # that the fastest links join: of a board of eight, a rack, a host
    memory_bandwidth_tb_per_s: TerabytesPerSecond
    power_watts: Watts | None
    price_usd_per_hour: DollarsPerHour | None
    architecture: str | None = None  # as Hopper: GPUs of one are a family, of which one may lend its rates to another
    rates: GpuRates | None = None  # None: those of the nearest GPU of its architecture are taken, scaled by the peaks
    sources: GpuSources

    def __post_init__(self) -> None:
        for field, name in SOURCED.items():
            number, source = getattr(self, field), getattr(self.sources, name)
            if number is not None and source is None:
                raise ConfigError(f"sources.{name}", source, f"must say where {field} ({number:,}) comes from")
            if number is None and source is not None:
                raise ConfigError(f"sources.{name}", source, f"is the source of {field}, which is not given")
        if self.capacity_bytes > MOST_OF_THE_BOARD * self.memory_gb * 2**30:
            rule = f"is more than memory_gb ({self.memory_gb:g}) on {self.devices} device{'s' * (self.devices > 1)}"
            raise ConfigError("driver_memory_bytes", self.driver_memory_bytes, rule)
        if self.rates is not None:
            self._check_rates(self.rates)

    def _check_rates(self, rates: GpuRates) -> None:
        """Raises ConfigError if products are said to be faster than the peak."""
        peaks = (("bf16", rates.bf16, self.peak_dense_tflop_per_s), ("fp8", rates.fp8, self.peak_dense_fp8_tflop_per_s))
        for name, products, peak in peaks:
            if products is not None and peak is None:
                raise ConfigError(f"rates.{name}", "given", f"needs peak_dense_{name}_tflop_per_s, which is not given")
            if products is not None and peak is not None and products.best_tflop_per_s > peak:
                rule = f"must be at most the dense peak ({peak:g})"
                raise ConfigError(f"rates.{name}.best_tflop_per_s", products.best_tflop_per_s, rule)

    def fuses_grouped_queries(self, dtype: str) -> bool:
        """Whether PyTorch has a fused attention kernel for it, in `dtype`, whose query heads share key and value heads.

        Flash attention needs compute capability 8.0 and 16 bits, and the memory-efficient kernel takes no shared heads
        (github.com/pytorch/pytorch, aten/src/ATen/native/transformers/cuda/sdp_utils.cpp). True if the capability is
        unknown.
        """
        if self.compute_capability is None:
            return True
        return self.compute_capability >= FLASH_ATTENTION_CAPABILITY and dtype != "float32"

    @property
    def peak_flop_per_s(self) -> int:
        """Dense peak of the training dtype in FLOPs per second, exact."""
        return round(self.peak_dense_tflop_per_s * 10**12)

    @property
    def device_capacity_bytes(self) -> int:
        """Memory of one device in bytes: `driver_memory_bytes`, else `memory_gb` x 2^30 / `devices`.

        One GB of the vendor is taken as 2^30 bytes: a device sold as 80 GB has 80 GiB, or a little less.
        """
        return self.driver_memory_bytes or round(self.memory_gb * 2**30) // self.devices

    @property
    def capacity_bytes(self) -> int:
        """Memory of all devices of the board, in bytes."""
        return self.devices * self.device_capacity_bytes


@cache
def load_gpus() -> tuple[Gpu, ...]:
    """All entries of the catalogue, in file order; the file is read on the first call."""
    catalogue = (bundled_data() / "gpus.json").read_bytes()
    gpus = msgspec.json.decode(catalogue, type=tuple[Gpu, ...])
    assert len({gpu.name.lower() for gpu in gpus}) == len(gpus)
    return gpus


def find_gpu(name: str, field: str = "gpus") -> Gpu:
    """The catalogue entry called `name`; upper and lower case are the same.

    Raises an ArgumentError for the argument `field` that lists the known names.
    """
    for gpu in load_gpus():
        if isinstance(name, str) and gpu.name.lower() == name.strip().lower():
            return gpu
    known = ", ".join(gpu.name for gpu in load_gpus())
    raise ArgumentError(field, name, f"is not known: choose from {known}, or add an entry to configs/gpus.json")


def read_gpus(path: str | os.PathLike[str]) -> tuple[Gpu, ...]:
    """The accelerators of the file `path`: a JSON list of entries as in `configs/gpus.json`.

    Raises UserError if the file cannot be read or is not such a list, if a field of an entry is missing, unknown or out
    of range, and if a name occurs twice in the file or also in the catalogue.
    """
    shown = show_name(os.fspath(path))
    entries = read_json_file(path, shown, "a file of GPUs")
    if not isinstance(entries, list) or not entries:
        rule = "must be a JSON list of entries as in configs/gpus.json"
        raise UserError(f"{shown}: {rule}, but is {show_value(entries)}")
    gpus: list[Gpu] = []
    known = {gpu.name.lower(): "in the catalogue" for gpu in load_gpus()}
    for number, fields in enumerate(entries, 1):
        name = fields.get("name") if isinstance(fields, dict) else None
        where = f"{shown}: entry {number}" + (f" ({name})" if isinstance(name, str) else "")
        if not isinstance(fields, dict):
            raise UserError(f"{where}: must be a JSON object of a GPU's fields, but is {show_value(fields)}")
        try:
            gpu = gpu_entry(fields)
        except ConfigError as error:
            raise error.in_file(where) from None
        if taken := known.get(gpu.name.lower()):
            raise ConfigError("name", gpu.name, f"is also {taken}: give it another name", where)
        known[gpu.name.lower()] = f"in entry {number}"
        gpus.append(gpu)
    return tuple(gpus)


def read_json_file(path: str | os.PathLike[str], shown: str, what: str) -> Any:
    """The value in a file of JSON; `shown` is its name in errors, and `what` says what file it is."""
    try:
        if not Path(path).is_file():
            raise UserError(f"{shown}: {'must be a file of JSON' if Path(path).exists() else 'no such file'}")
        with Path(path).open("rb") as file:
            content = file.read(MAX_GPU_FILE_BYTES + 1)
    except OSError as error:
        raise UserError(f"{shown}: cannot be read: {error.strerror}") from None
    if len(content) > MAX_GPU_FILE_BYTES:
        raise UserError(f"{shown}: {what} has at most {MAX_GPU_FILE_BYTES} bytes")
    content = content.removeprefix(codecs.BOM_UTF8)  # which some programs put before UTF-8
    try:
        value = msgspec.json.decode(content)
        json.loads(content, object_pairs_hook=_refuse_duplicates)
    except ConfigError as error:
        raise error.in_file(shown) from None
    except msgspec.DecodeError as error:
        raise UserError(f"{shown}: not valid JSON: {error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{shown}: not valid JSON: {show_json_error(error)}") from None
    return value


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(twice, fields[twice], "the field occurs twice in its object: give it once")
    return fields


def gpu_entry(fields: dict[str, Any]) -> Gpu:
    """One entry as a `Gpu`; raises ConfigError with field, value and rule."""
    from torch_models.fields.conversion import convert  # slow, and a budget does not need it

    sources = fields.get("sources")
    if isinstance(sources, dict):
        try:
            convert(sources, GpuSources)
        except ConfigError as error:
            raise ConfigError(f"sources.{error.field}", error.value, error.rule) from None
    rates = fields.get("rates")
    if isinstance(rates, dict):
        check_rates(rates)
    gpu = convert(fields, Gpu)
    if gpu.name != gpu.name.strip() or not gpu.name or not gpu.name.isprintable() or {",", "="} & set(gpu.name):
        raise ConfigError("name", gpu.name, "must be a name on one line, without commas, equals signs or outer spaces")
    return gpu
