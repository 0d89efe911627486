"""A cluster: GPUs of one kind, how they are linked, and what measured steps say of it.

    {"gpu": "H100", "gpus_per_node": 8, "network_link": {"gb_per_s": 50, "latency_seconds": 2e-5}, "power_watts": 500}

is such a cluster as a file of JSON. `gpu` is a name in the catalogue, or the fields of an entry as there; the rest may
be left out. `node_link` and `network_link` have the fields of `Link`, `calibration` those of `Calibration`, and `rates`
those of `GpuRates` that were measured on it, which replace the catalogue's. `attention_kernel`, `products_in_fp8` and
`overlap_expert_exchange` are of the software that runs on it.
"""

import os
from typing import Annotated, Any, TypeVar, get_args

import msgspec

from counting.cost.hardware import Gpu, Watts, find_gpu, gpu_entry, load_gpus, read_json_file
from counting.cost.rates import GpuRates, Link, check_rates
from counting.work import KeyValueHeads, LayerStyle, Norms, Rotation
from torch_models.errors import ArgumentError, ConfigError, UserError, show_name, show_value
from torch_models.layout import DEFAULT_GPUS_PER_NODE, MOST_GPUS

Factor = Annotated[float, msgspec.Meta(ge=1e-3, le=1e3)]
LOWEST_POWER_SHARE = 0.2  # of the board's limit: boards take none below it, and half of it is the least of a source
FEWEST_CALIBRATED = 3  # rows: two rows leave one out to fit to, and no spread is known then


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A scale fitted to the user's own steps: predicted seconds = scale x estimated seconds.

    `low` and `high` are the smallest and the largest measured / predicted, each row predicted by a scale fitted to the
    others (leave one out), relative to `scale`; `rows` is their number.
    """

    scale: Factor
    low: Annotated[float, msgspec.Meta(ge=1e-3, le=1)]
    high: Annotated[float, msgspec.Meta(ge=1, le=1e3)]
    rows: Annotated[int, msgspec.Meta(ge=FEWEST_CALIBRATED, le=10**6)]


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """GPUs of one kind, and their links. Fields that are None follow from the catalogue's entry of the GPU."""

    gpu: Gpu
    gpus_per_node: int | None = None
    node_link: Link | None = None
    network_link: Link | None = None
    power_watts: float | None = None  # the limit that is set, at most the board's and at least a fifth of it
    calibration: Calibration | None = None
    attention_kernel: str | None = None  # a name in the rates, as "cuDNN"; None: as the measured op names it
    products_in_fp8: bool | None = None  # of linear layers; None: as the precision of the setup has it
    norms: Norms = "fused"  # how RMSNorm runs where it is not compiled
    rotation: Rotation = "real"  # how queries and keys are rotated
    key_value_heads: KeyValueHeads = "shared"  # of grouped queries
    overlap_expert_exchange: bool = False  # tokens travel to experts beside the ops of another micro-batch

    def __post_init__(self) -> None:
        if not isinstance(self.gpu, Gpu):
            raise ArgumentError("gpu", self.gpu, "must be a Gpu of the catalogue or of a file")
        node, limit, board = self.gpus_per_node, self.power_watts, self.gpu.power_watts
        if node is not None and (isinstance(node, bool) or not isinstance(node, int) or not 1 <= node <= MOST_GPUS):
            raise ArgumentError("gpus_per_node", node, f"must be a whole number from 1 to {MOST_GPUS}")
        if not isinstance(self.attention_kernel, str | None):
            raise ArgumentError("attention_kernel", self.attention_kernel, "must be the name of a kernel, as cuDNN")
        if not isinstance(self.products_in_fp8, bool | None):
            raise ArgumentError("products_in_fp8", self.products_in_fp8, "must be true, false or none")
        for field, known in (("norms", Norms), ("rotation", Rotation), ("key_value_heads", KeyValueHeads)):
            if (value := getattr(self, field)) not in get_args(known):
                raise ArgumentError(field, value, f"must be one of {', '.join(get_args(known))}")
        if not isinstance(self.overlap_expert_exchange, bool):
            raise ArgumentError("overlap_expert_exchange", self.overlap_expert_exchange, "must be true or false")
        if limit is None:
            return
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < float("inf"):
            raise ArgumentError("power_watts", limit, "must be a number of watts above 0")
        if board is None:
            rule = f"is compared with the limit of the board, which is not known of {self.gpu.name}: leave it out"
            raise ArgumentError("power_watts", limit, rule)
        if limit > board:
            raise ArgumentError(
                "power_watts", limit, f"must be at most the limit of the board of {self.gpu.name}: {board:g}"
            )
        if limit < LOWEST_POWER_SHARE * board:
            rule = f"must be at least {LOWEST_POWER_SHARE:.0%} of the limit of the board of {self.gpu.name}, {board:g}"
            raise ArgumentError("power_watts", limit, f"{rule}: far below, what it does to products is unknown")

    @property
    def style(self) -> LayerStyle:
        """How its software runs layers."""
        return LayerStyle(norms=self.norms, rotation=self.rotation, key_value_heads=self.key_value_heads)

    @property
    def node_size(self) -> int:
        """GPUs that the fastest links join: of the cluster, else of the catalogue, else 8."""
        return self.gpus_per_node or self.gpu.devices_per_node or DEFAULT_GPUS_PER_NODE


class _ClusterFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of a file; its parts are converted one by one, so that errors name the field within them."""

    gpu: str | dict[str, Any]
    gpus_per_node: Annotated[int, msgspec.Meta(ge=1, le=MOST_GPUS)] | None = None
    node_link: dict[str, Any] | None = None
    network_link: dict[str, Any] | None = None
    power_watts: Watts | None = None
    calibration: dict[str, Any] | None = None
    rates: dict[str, Any] | None = None
    attention_kernel: str | None = None
    products_in_fp8: bool | None = None
    norms: Norms = "fused"
    rotation: Rotation = "real"
    key_value_heads: KeyValueHeads = "shared"
    overlap_expert_exchange: bool = False


_Part = TypeVar("_Part", Link, Calibration)


def read_cluster(path: str | os.PathLike[str]) -> Cluster:
    """The cluster in the file `path`: a JSON object with `gpu` and, where they are known, the other fields.

    Raises UserError with file, field, value and rule if the file cannot be read or is no such object, if a field is
    unknown or out of range, and if the power limit is above that of the board or far below it.
    """
    shown = show_name(os.fspath(path))
    content = read_json_file(path, shown, "a file of a cluster")
    if not isinstance(content, dict) or not content:
        rule = 'must be a JSON object with a gpu, as {"gpu": "H100"}'
        raise UserError(f"{shown}: {rule}, but is {show_value(content)}")
    try:
        return _cluster(content)
    except ConfigError as error:
        raise error.in_file(shown) from None
    except ArgumentError as error:
        raise ConfigError(error.field, error.value, error.rule, shown) from None


def _cluster(content: dict[str, Any]) -> Cluster:
    """Raises ConfigError or ArgumentError with field, value and rule."""
    from torch_models.fields.conversion import convert  # slow, and few commands need it

    fields = convert(content, _ClusterFields)
    gpu = _gpu(fields.gpu)
    if fields.rates is not None:
        known = {} if gpu.rates is None else msgspec.to_builtins(gpu.rates)
        check_rates(merged := {**known, **fields.rates})
        gpu = msgspec.structs.replace(gpu, rates=convert(merged, GpuRates))
    return Cluster(
        gpu=gpu,
        gpus_per_node=fields.gpus_per_node,
        node_link=_part("node_link", fields.node_link, Link),
        network_link=_part("network_link", fields.network_link, Link),
        power_watts=fields.power_watts,
        calibration=_part("calibration", fields.calibration, Calibration),
        attention_kernel=fields.attention_kernel,
        products_in_fp8=fields.products_in_fp8,
        norms=fields.norms,
        rotation=fields.rotation,
        key_value_heads=fields.key_value_heads,
        overlap_expert_exchange=fields.overlap_expert_exchange,
    )


def _gpu(given: str | dict[str, Any]) -> Gpu:
    if isinstance(given, str):
        return find_gpu(given, "gpu")
    try:
        gpu = gpu_entry(given)
    except ConfigError as error:
        raise _within("gpu", error) from None
    known = {one.name.lower(): one for one in load_gpus()}.get(gpu.name.lower())
    without_rates = [msgspec.structs.replace(one, rates=None) for one in (gpu, known or gpu)]
    if without_rates[0] != without_rates[1]:
        rule = "is another one in the catalogue: give that name alone, or another name"
        raise ConfigError("gpu.name", gpu.name, rule)
    return gpu


def _part(field: str, given: dict[str, Any] | None, struct: type[_Part]) -> _Part | None:
    """The part of the file under `field`; None if it is not given."""
    from torch_models.fields.conversion import convert

    try:
        return None if given is None else convert(given, struct)
    except ConfigError as error:
        raise _within(field, error) from None


def _within(field: str, error: ConfigError) -> ConfigError:
    return ConfigError(f"{field}.{error.field}", error.value, error.rule)
