"""What was measured of a machine: the types, torch-free. Rates are in 10^12 FLOPs a second, bytes in 10^9 a second."""

from typing import Literal

import msgspec

from counting.records.tidy import Tidy

DeviceKind = Literal["cpu", "cuda"]
FoundCollective = Literal["all_gather", "reduce_scatter", "all_reduce", "all_to_all"]


class FoundProducts(msgspec.Struct, frozen=True, kw_only=True):
    """Matrix products: the fastest one, and what a mix of a training step's products sustains."""

    best_tflop_per_s: float
    sustained_tflop_per_s: float
    best_shape: tuple[int, int, int]  # rows, summed, columns
    sustained_shape: tuple[int, int, int]


class FoundGrouped(msgspec.Struct, frozen=True, kw_only=True):
    """Products of experts, forward and backward."""

    tokens_per_expert: int
    tflop_per_s: float


class FoundAttention(msgspec.Struct, frozen=True, kw_only=True):
    """A fused causal kernel; FLOPs are those of the causal half, and backward has 2.5 times those of forward."""

    kernel: str
    head_size: int
    sequence_length: int
    forward_tflop_per_s: float
    backward_tflop_per_s: float


class FoundBytes(msgspec.Struct, frozen=True, kw_only=True):
    """Ops without products: the fastest at any size, and each at a size beyond the caches."""

    best_gb_per_s: float
    sustained_gb_per_s: float  # of the ops below in a row, each on as many bytes
    by_op: dict[str, float]


class FoundLink(msgspec.Struct, frozen=True, kw_only=True):
    """Collectives in one group of ranks, by the formulas of rings: bytes that leave each rank, in 10^9 a second."""

    ranks: int
    in_node: int  # of these ranks, in each node
    best_gb_per_s: float  # the fastest collective of any size
    achieved_gb_per_s: float  # all-gather and reduce-scatter of the largest size, together
    shortest_seconds: float  # of an all-gather or reduce-scatter of the smallest size
    by_op: dict[FoundCollective, float]  # at the largest size

    @property
    def nodes(self) -> int:
        """Nodes that the ranks are spread over."""
        return self.ranks // self.in_node


class FoundMachine(Tidy, frozen=True, kw_only=True):
    """One device of the machine, and its links where several ranks measured."""

    device: DeviceKind
    device_name: str  # as the driver or the system calls it
    threads: int  # that a CPU computes with; 1 of a GPU
    memory_bytes: int
    dtype: Literal["bfloat16", "float16"]
    products: FoundProducts
    fp32_products: FoundProducts  # without reduced precision, torch's default
    grouped: tuple[FoundGrouped, ...]
    attention: tuple[FoundAttention, ...]
    bytes: FoundBytes
    launch_seconds: float
    multiprocessors: int | None = None  # of a CUDA device
    beside_collectives_share: float | None = None  # of their speed that products keep beside an all-gather
    spread: float | None = None  # standard deviation of the ranks' speed of products, relative to the mean
    links: tuple[FoundLink, ...] = ()
    gpus_per_node: int | None = None
