"""What an accelerator achieves, as data of the catalogue: rates of products, attention, bytes, and of links.

Each group names its source. `best` is the most that was measured, which the bound of a step uses; `sustained` is what a
training step sees, which the estimate uses. Rates are in 10^12 FLOPs a second, one multiply-add being 2 FLOPs; those of
attention count what a causal kernel computes.
"""

from typing import Annotated, Any, Literal

import msgspec

from torch_models.errors import ConfigError

Rate = Annotated[float, msgspec.Meta(ge=1e-6, le=1e6)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
SpeedShare = Annotated[float, msgspec.Meta(ge=1e-3, le=1)]  # below it, a number is in another unit
GroupedShare = Annotated[float, msgspec.Meta(ge=1e-6, le=1)]  # few tokens reach little of a peak
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1)]
Tokens = Annotated[int, msgspec.Meta(ge=1, le=10**9)]
Multiprocessors = Annotated[int, msgspec.Meta(ge=1, le=10_000)]


class ProductRates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Large matrix products of one format, at the board's own power limit.

    The exponents are those of a power limit relative to the board's: rate x (limit / board's)^exponent; None: unknown.
    Raises ConfigError if the sustained rate is above the best one.
    """

    best_tflop_per_s: Rate
    sustained_tflop_per_s: Rate
    best_power_exponent: Share | None = None
    sustained_power_exponent: Share | None = None
    source: str

    def __post_init__(self) -> None:
        if self.sustained_tflop_per_s > self.best_tflop_per_s:
            rule = f"must be at most best_tflop_per_s ({self.best_tflop_per_s:g})"
            raise ConfigError("sustained_tflop_per_s", self.sustained_tflop_per_s, rule)


class GroupedRate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Products of experts, as a share of the dense peak of their format, from `tokens_per_expert` on."""

    tokens_per_expert: Tokens
    share_of_peak: GroupedShare
    source: str


class AttentionRate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fused causal attention kernel at one length and head size; backward counts 2.5 times the FLOPs of forward."""

    kernel: str  # "FlashAttention-2", "cuDNN", "FlashAttention-3", "FlashAttention-4"
    head_size: Tokens
    sequence_length: Tokens
    forward_tflop_per_s: Rate
    backward_tflop_per_s: Rate
    source: str


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A link of one GPU, one direction. `achieved_gb_per_s` is what collectives reach of it; None: not measured.

    `latency_seconds` is that of one step of a ring. Raises ConfigError if more is achieved than the link has.
    """

    gb_per_s: Rate
    achieved_gb_per_s: Rate | None = None
    latency_seconds: Seconds | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if self.achieved_gb_per_s is not None and self.achieved_gb_per_s > self.gb_per_s:
            rule = f"must be at most gb_per_s ({self.gb_per_s:g})"
            raise ConfigError("achieved_gb_per_s", self.achieved_gb_per_s, rule)


class GpuRates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All rates of one accelerator, of the whole board; those that are unknown are None or empty.

    Raises ConfigError if a number whose source has a field of its own lacks it.
    """

    bf16: ProductRates  # of the training dtype: of float16 where a GPU has no bfloat16
    fp8: ProductRates | None = None
    fp32: ProductRates | None = None  # without TF32, as torch multiplies float32 by default
    grouped: tuple[GroupedRate, ...] = ()  # in 16 bits
    grouped_fp8: tuple[GroupedRate, ...] = ()
    attention: tuple[AttentionRate, ...] = ()
    memory_bandwidth_share: SpeedShare  # of the printed bandwidth that copies reach
    memory_bandwidth_source: str
    launch_seconds: Seconds  # between two kernels of a stream that is never empty
    launch_source: str
    multiprocessors: Multiprocessors | None = None  # of the board, that compute tiles of a product at the same time
    multiprocessors_source: str | None = None
    beside_collectives_share: SpeedShare | None = (
        None  # of their speed that products keep while a collective runs beside
    )
    beside_collectives_source: str | None = None
    spread: Share | None = None  # standard deviation of the speed of equal GPUs, relative; the slowest sets the pace
    spread_source: str | None = None
    node_link: Link | None = None  # within a node
    network_link: Link | None = None  # across nodes, a GPU's share

    def __post_init__(self) -> None:
        for number in ("multiprocessors", "beside_collectives_share", "spread"):
            name = f"{number.removesuffix('_share')}_source"
            if (getattr(self, number) is None) != (getattr(self, name) is None):
                raise ConfigError(name, getattr(self, name), f"must be given with {number}, and only with it")


RateKind = Literal["best", "sustained"]


# Field of `GpuRates` -> type of what is in it.
PARTS_OF_RATES: dict[str, type[msgspec.Struct]] = {
    "bf16": ProductRates,
    "fp8": ProductRates,
    "fp32": ProductRates,
    "grouped": GroupedRate,
    "grouped_fp8": GroupedRate,
    "attention": AttentionRate,
    "node_link": Link,
    "network_link": Link,
}


def check_rates(fields: dict[str, Any], path: str = "rates") -> None:
    """Raises ConfigError with the whole path of a field, value and rule if `fields` of a JSON object are no rates."""
    from torch_models.fields.conversion import convert  # slow, and the catalogue does not need it

    for name, kind in PARTS_OF_RATES.items():
        inner = fields.get(name)
        rows = inner if isinstance(inner, list) else [inner]
        for number, row in enumerate(rows):
            where = f"{path}.{name}" + (f"[{number}]" if isinstance(inner, list) else "")
            if isinstance(row, dict):
                _check(row, kind, where, convert)
    _check(fields, GpuRates, path, convert)


def _check(fields: dict[str, Any], kind: type[msgspec.Struct], path: str, convert: Any) -> None:
    try:
        convert(fields, kind)
    except ConfigError as error:
        raise ConfigError(f"{path}.{error.field}", error.value, error.rule) from None
