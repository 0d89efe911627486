"""The rates of one GPU of a cluster, resolved once: what everything that takes time divides by."""

from typing import Literal

import msgspec

from counting.cost.cluster import Cluster

# `bound`: what no run beats; `estimate`: what a training step sees.
Style = Literal["bound", "estimate"]


class AttentionSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """Computed FLOPs a second of a fused attention kernel at one head size and length."""

    kernel: str
    head_size: int
    sequence_length: int
    forward: float
    backward: float


class GroupedSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """FLOPs a second of grouped products in 16 bits, with so many tokens an expert."""

    tokens_per_expert: int
    flop_per_s: float


class LinkSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """A link of one GPU in one direction; `latency_seconds` is that of one step of a collective."""

    bytes_per_s: float
    latency_seconds: float


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """One device of a cluster in FLOP/s, bytes/s and seconds, with power limit and the slowest of the GPUs in them."""

    style: Style
    gpu: str
    rates_of: str
    products: dict[str, float]  # "16-bit", "fp8", "fp32" -> FLOP/s of large products
    grouped: tuple[GroupedSpeed, ...]
    attention: tuple[AttentionSpeed, ...]
    attention_kernel: str | None  # None: the one that the op names
    bytes_per_s: float
    launch_seconds: float
    multiprocessors: int | None  # None: no loss to tiles and waves
    beside_collectives_share: float  # of their speed that products keep while a collective runs beside them
    gpus_per_node: int
    node_link: LinkSpeed | None
    network_link: LinkSpeed | None


def machine_of(cluster: Cluster, style: Style, *, ranks: int = 1, attention_kernel: str | None = None) -> Machine:
    """The rates of a GPU of `cluster`; `ranks` of them run, the slowest of which sets the pace of an estimate.

    Raises UserError if neither the GPU nor one of its architecture has rates.
    """
    raise NotImplementedError
