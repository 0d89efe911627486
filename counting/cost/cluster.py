"""A cluster: GPUs of one kind, how they are linked, and what measured steps say of it."""

import msgspec

from counting.cost.hardware import Gpu
from counting.cost.rates import Link
from torch_models.errors import ArgumentError


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A scale fitted to the user's own steps: predicted seconds = scale x estimated seconds.

    `low` and `high` are the smallest and the largest measured / predicted, each row predicted by a scale fitted to the
    others (leave one out), relative to `scale`; `rows` is their number.
    """

    scale: float
    low: float
    high: float
    rows: int


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """GPUs of one kind, and their links. Fields that are None follow from the catalogue's entry of the GPU."""

    gpu: Gpu
    gpus_per_node: int | None = None
    node_link: Link | None = None
    network_link: Link | None = None
    power_watts: float | None = None  # the limit that is set, at most the board's
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        limit, board = self.power_watts, self.gpu.power_watts
        if limit is not None and not (0 < limit < float("inf")):
            raise ArgumentError("power_watts", limit, "must be a number of watts above 0")
        if limit is not None and board is not None and limit > board:
            raise ArgumentError(
                "power_watts", limit, f"must be at most the limit of the board of {self.gpu.name}: {board:g}"
            )
