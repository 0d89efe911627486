"""What collectives move at least, with its arithmetic, and against the groups of layouts counted rank by rank.

The links of the hand-made machine are printed with 400 GB/s in a node of 8, and 50 GB/s a GPU across nodes.
"""

from itertools import product
from typing import Any

import pytest
from msgspec import structs

from counting.cost.step_time.collectives import (
    AXES,
    LeastBytes,
    group_of_axis,
    least_bytes,
    least_seconds,
    link_of,
    seconds_of_collective,
)
from counting.cost.step_time.machine import LinkSpeed, machine_of
from counting.ranks.profile import Axis, CollectiveOp, Traffic
from tests.counting.cost.step_time.clusters import groups_of, made_cluster
from torch_models.layout import Layout

BOUND = machine_of(made_cluster(), "bound")
LIKE_THE_BOUND = structs.replace(BOUND, style="estimate")  # printed speeds, and no latency
MB = 10**6
NODE, TWO_NODES, ONE_A_NODE = Layout(dp=1, fsdp=8), Layout(dp=1, fsdp=16), Layout(dp=1, fsdp=4, tp=8)
LAYOUTS = [
    TWO_NODES,
    ONE_A_NODE,
    Layout(dp=2, fsdp=2, cp=2, tp=2, pp=2),
    Layout(dp=4, fsdp=8, ep=8),
    Layout(dp=1, fsdp=16, cp=2, ep=4, pp=2),
    Layout(dp=1, fsdp=9, pp=4),
    Layout(dp=2, fsdp=6, tp=2, pp=2),
    Layout(dp=5, fsdp=3, tp=3),
    Layout(dp=1, fsdp=4, tp=6),
    Layout(dp=6, fsdp=4),
]


def least(operation: CollectiveOp, layout: Layout, axis: Axis = "fsdp") -> LeastBytes:
    """Of 800 MB, in two calls."""
    return least_bytes(operation, Traffic(calls=2, bytes_in=800 * MB, bytes_out=100 * MB), layout, axis, 8)


def seconds(moved: LeastBytes, layout: Layout, **machine: Any) -> float:
    return least_seconds(moved, link_of(group_of_axis(layout, "fsdp", 8)), structs.replace(BOUND, **machine))


def test_gathers_receive_and_reduce_scatters_send() -> None:
    """7/8 x 800 MB are 700 MB; at 400 GB/s 1,750 us, and no longer for both together."""
    gathered, reduced = least("all_gather", NODE), least("reduce_scatter", NODE)
    assert gathered == LeastBytes(received=700 * MB)
    assert reduced == LeastBytes(sent=700 * MB)
    assert gathered.plus(reduced, 3) == LeastBytes(700 * MB, 2100 * MB)
    assert seconds(gathered, NODE) == pytest.approx(1750e-6) == seconds(gathered.plus(reduced), NODE)


def test_an_all_reduce_does_both() -> None:
    """With a switch that sums (NVLink SHARP) each GPU sends 800 MB and receives the sum of the others: 2 ms."""
    assert least("all_reduce", NODE) == LeastBytes(800 * MB, 800 * MB)
    assert seconds(least("all_reduce", NODE), NODE) == pytest.approx(2e-3)
    # Of two nodes with 8 ranks each receives the other's sum, 100 MB a rank.
    assert least("all_reduce", TWO_NODES) == LeastBytes(800 * MB, 800 * MB, 100 * MB, 100 * MB)


def test_a_gather_across_nodes() -> None:
    """A GPU receives 15/16 x 800 MB by 400 + 50 GB/s: 1,666.7 us; a node the other's half by 8 x 50 GB/s: 1,000 us.

    At 10 GB/s the latter are 5 ms. Of 4 nodes with one rank each, the rank receives 3/4 by 50 GB/s: 12 ms.
    """
    gathered = least("all_gather", TWO_NODES)
    assert gathered == LeastBytes(received=750 * MB, from_network=50 * MB)
    assert seconds(gathered, TWO_NODES) == pytest.approx(750e6 / 450e9)
    slow = LinkSpeed(bytes_per_s=10e9, latency_seconds=0)
    assert seconds(gathered, TWO_NODES, network_link=slow) == pytest.approx(5e-3)
    assert least("reduce_scatter", ONE_A_NODE) == LeastBytes(sent=600 * MB, to_network=600 * MB)
    assert seconds(least("all_gather", ONE_A_NODE), ONE_A_NODE, node_link=None) == pytest.approx(12e-3)


def test_ring_attention_sends_all_to_the_next_rank_and_experts_may_stay() -> None:
    """Of 16 ranks of cp on two nodes one of 8 sends to the other node: 100 MB a rank."""
    assert least("all_to_all", Layout(dp=1, cp=4), "cp") == LeastBytes(800 * MB, 800 * MB)
    across = LeastBytes(800 * MB, 800 * MB, 100 * MB, 100 * MB)
    assert least("all_to_all", Layout(dp=1, cp=16), "cp") == across
    assert least("all_to_all", Layout(dp=1, fsdp=16, ep=16), "ep") == LeastBytes()
    assert least("send", Layout(dp=1, pp=2), "pp") == LeastBytes(sent=800 * MB)
    assert least("receive", Layout(dp=1, pp=2), "pp") == LeastBytes()
    assert least("all_gather", Layout(dp=1)) == LeastBytes()


def spread(layout: Layout, axis: Axis, gpus_per_node: int) -> list[int]:
    """The number of nodes of each group."""
    return [len({rank // gpus_per_node for rank in ranks}) for ranks in groups_of(layout, axis)]


@pytest.mark.parametrize("gpus_per_node", [1, 4, 6, 8, 72])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_all_ranks_receive_by_the_network_by_counting(layout: Layout, gpus_per_node: int) -> None:
    """Each node of a group but one what is gathered, and each that is not alone what is reduced."""
    size = 800 * MB
    traffic = Traffic(calls=1, bytes_in=size, bytes_out=size)
    for axis in AXES:
        if layout.tp > 1 and axis in ("ep", "expert_fsdp", "expert_dp"):
            continue  # the two do not go together
        nodes = spread(layout, axis, gpus_per_node)
        gathered, reduced = (
            least_bytes(operation, traffic, layout, axis, gpus_per_node) for operation in ("all_gather", "all_reduce")
        )
        assert gathered.from_network * layout.ranks == pytest.approx(sum(size * (each - 1) for each in nodes)), axis
        of_several = sum(size * each for each in nodes if each > 1)
        assert reduced.from_network * layout.ranks == pytest.approx(of_several), axis


@pytest.mark.parametrize("gpus_per_node", [1, 4, 6, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_collective_of_an_estimate_is_faster(layout: Layout, gpus_per_node: int) -> None:
    """At equal speeds and without latency, whichever of the links is the faster."""
    operations: tuple[CollectiveOp, ...] = ("all_gather", "reduce_scatter", "all_reduce", "send")
    traffic = Traffic(calls=3, bytes_in=80 * MB, bytes_out=80 * MB)
    for axis, operation, network in product(AXES, operations, (1e9, 50e9, 900e9)):
        link = LinkSpeed(bytes_per_s=network, latency_seconds=0)
        bound, same = (structs.replace(machine, network_link=link) for machine in (BOUND, LIKE_THE_BOUND))
        group = group_of_axis(layout, axis, gpus_per_node)
        moved = least_bytes(operation, traffic, layout, axis, gpus_per_node)
        estimated = seconds_of_collective(operation, traffic, group, same)
        assert least_seconds(moved, link_of(group), bound) <= estimated * (1 + 1e-12), (axis, operation)
