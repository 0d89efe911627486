"""Collectives of torch.distributed: bandwidth and latency of a link, by the formulas of rings.

In a ring of n ranks each rank sends n - 1 parts of the n of the whole tensor in an all-gather, a reduce-scatter or an
all-to-all, and twice as many in an all-reduce; the steps of the ring are as many (Patarasuk & Yuan 2009, Bandwidth
optimal all-reduce algorithms for clusters of workstations).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from counting.calibration.found import FoundCollective, FoundLink
from counting.calibration.machine.clock import seconds_of
from counting.calibration.machine.products import MatrixProduct
from counting.calibration.machine.ranks import Ranks

_SMALLEST_NUMBERS = 16  # of one rank's part
LARGEST_COLLECTIVE_BYTES = {"cuda": 2**28, "cpu": 2**24}  # of the whole tensor
_ROUNDS: dict[FoundCollective, int] = {"all_gather": 1, "reduce_scatter": 1, "all_reduce": 2, "all_to_all": 1}
_TIMINGS = 5
_PRODUCTS_BESIDE = 8


def measure_links(ranks: Ranks, device: torch.device, dtype: torch.dtype) -> tuple[FoundLink, ...]:
    """Collectives within a node, if it has several ranks, and of all ranks across nodes, if there are several.

    Every rank must call it; the slowest rank's seconds count.
    """
    links = []
    if ranks.in_node > 1:
        groups = [
            dist.new_group(list(range(first, first + ranks.in_node))) for first in range(0, ranks.world, ranks.in_node)
        ]
        links.append(_measure(groups[ranks.rank // ranks.in_node], ranks.in_node, ranks.in_node, device, dtype))
    if ranks.nodes > 1:
        links.append(_measure(dist.group.WORLD, ranks.world, ranks.in_node, device, dtype))
    return tuple(links)


def _measure(group: Any, ranks: int, in_node: int, device: torch.device, dtype: torch.dtype) -> FoundLink:
    """All collectives in `group`, of sizes that grow by 8."""
    by_op: dict[FoundCollective, float] = {}
    best, shortest = 0.0, math.inf
    for op, rounds in _ROUNDS.items():
        numbers, speed = _SMALLEST_NUMBERS, 0.0
        while numbers * ranks * dtype.itemsize <= LARGEST_COLLECTIVE_BYTES[device.type]:
            seconds = _slowest(_call(op, group, ranks, numbers, device, dtype), device)
            speed = rounds * (ranks - 1) * numbers * dtype.itemsize / seconds
            best = max(best, speed)
            if numbers == _SMALLEST_NUMBERS and op in ("all_gather", "reduce_scatter"):
                shortest = min(shortest, seconds)
            numbers *= 8
        by_op[op] = speed / 1e9
    return FoundLink(
        ranks=ranks,
        in_node=in_node,
        best_gb_per_s=best / 1e9,
        achieved_gb_per_s=2 / (1 / by_op["all_gather"] + 1 / by_op["reduce_scatter"]),
        shortest_seconds=shortest,
        by_op=by_op,
    )


def _call(
    op: FoundCollective, group: Any, ranks: int, numbers: int, device: torch.device, dtype: torch.dtype
) -> Callable[[], object]:
    """A call of `op`, in which each rank's part has `numbers` numbers."""
    whole = torch.ones(ranks * numbers, device=device, dtype=dtype)
    part = torch.ones(numbers, device=device, dtype=dtype)
    other = torch.empty_like(whole)
    gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13
    scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    calls: dict[FoundCollective, Callable[[], object]] = {
        "all_gather": lambda: gather(whole, part, group=group),
        "reduce_scatter": lambda: scatter(part, whole, group=group),
        "all_reduce": lambda: dist.all_reduce(whole, op=dist.ReduceOp.MAX, group=group),
        "all_to_all": lambda: dist.all_to_all_single(other, whole, group=group),
    }
    return calls[op]


def _slowest(call: Callable[[], object], device: torch.device) -> float:
    """The median of a few timings of `call`, each that of the slowest rank of all."""
    call()
    timings = torch.tensor([seconds_of(call, device) for _ in range(_TIMINGS)], device=device, dtype=torch.float64)
    dist.all_reduce(timings, op=dist.ReduceOp.MAX)
    return float(timings.median())


def measure_beside(ranks: Ranks, device: torch.device, dtype: torch.dtype, side: int) -> float:
    """The share of their speed that products of `side` keep while an all-gather over all ranks runs beside them."""
    product = MatrixProduct(*(torch.randn(side, side, device=device, dtype=dtype) for _ in range(2)))
    product()
    alone = seconds_of(product, device, _PRODUCTS_BESIDE)
    numbers = LARGEST_COLLECTIVE_BYTES[device.type] // dtype.itemsize // ranks.world
    whole = torch.ones(ranks.world * numbers, device=device, dtype=dtype)
    part = torch.ones(numbers, device=device, dtype=dtype)
    gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    one = seconds_of(lambda: gather(whole, part), device)
    gathers = math.ceil(3 * alone * _PRODUCTS_BESIDE / one)  # long enough, if products become three times as slow
    dist.barrier()
    waiting = [gather(whole, part, async_op=True) for _ in range(int(ranks.shared(gathers)))]
    beside = seconds_of(product, device, _PRODUCTS_BESIDE) if device.type == "cpu" else _beside(product)
    for work in waiting:
        work.wait()
    return min(1.0, alone / beside)


def _beside(product: MatrixProduct) -> float:
    """Seconds of one product on the stream of products alone, which does not wait for the collectives."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(_PRODUCTS_BESIDE):
        product()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / _PRODUCTS_BESIDE


def relative_spread(ranks: Ranks, device: torch.device, speed: float) -> float:
    """Standard deviation of the ranks' `speed`, relative to its mean; of the population that was measured."""
    speeds = torch.zeros(ranks.world, device=device, dtype=torch.float64)
    speeds[ranks.rank] = speed
    dist.all_reduce(speeds)
    return float(speeds.std(correction=0) / speeds.mean())
