"""The seconds of collectives, each with its arithmetic. The hand-made machine is in clusters.py.

Its links: NVLink 400 GB/s printed, 300 achieved, 2 us a step; network 50 and 40 GB/s a GPU, 10 us a step; 8.4 us a
call; nodes of 8.
"""

from itertools import product
from typing import get_args

import msgspec
import pytest

from counting.cost.step_time.collectives import (
    AXES,
    RankGroup,
    check_links,
    group_of_axis,
    link_of,
    seconds_of_collective,
    seconds_of_message,
)
from counting.cost.step_time.machine import LinkSpeed, machine_of
from counting.ranks.profile import CollectiveOp, Traffic
from tests.counting.cost.step_time.clusters import groups_of, made_cluster
from torch_models.errors import ArgumentError
from torch_models.layout import Layout

ESTIMATE = machine_of(made_cluster(), "estimate")
BOUND = machine_of(made_cluster(), "bound")

NODE = RankGroup(ranks=8, in_node=8, nodes=1)
TWO_NODES = RankGroup(ranks=16, in_node=8, nodes=2)
ONE_A_NODE = RankGroup(ranks=4, in_node=1, nodes=4)  # of every node the same one, as fsdp beside tp = 8

GATHER = Traffic(calls=2, bytes_in=100_000_000, bytes_out=800_000_000)  # 2 calls, each of shards of 50 MB of 8 ranks
SCATTER = Traffic(calls=2, bytes_in=800_000_000, bytes_out=100_000_000)
REDUCE = Traffic(calls=1, bytes_in=800_000_000, bytes_out=800_000_000)


def over_nodes(groups: list[list[int]], gpus_per_node: int) -> tuple[int, int]:
    """The ranks in the node that has the fewest of a group, and the nodes of the group on most of them."""
    nodes = [[rank // gpus_per_node for rank in ranks] for ranks in groups]
    return min(min(map(each.count, each)) for each in nodes), max(len(set(each)) for each in nodes)


LAYOUTS = [
    Layout(dp=2, fsdp=8, tp=8, pp=2),
    Layout(dp=1, fsdp=32, tp=8),
    Layout(dp=2, fsdp=2, cp=2, tp=2, pp=2),
    Layout(dp=4, fsdp=8, ep=8),
    Layout(dp=4, fsdp=8, ep=2),
    Layout(dp=4, fsdp=4, ep=16),
    Layout(dp=1, fsdp=16, cp=2, ep=4, pp=2),
    Layout(dp=1, fsdp=8),
    Layout(dp=1, fsdp=4, tp=2),
    Layout(dp=1, fsdp=6),
    Layout(dp=2, fsdp=6, tp=2, pp=2),
    Layout(dp=5, fsdp=3, tp=3),
    Layout(dp=1, fsdp=12),
    Layout(dp=1, fsdp=9),
    Layout(dp=1, fsdp=4, tp=6),
    Layout(dp=1),
]


@pytest.mark.parametrize("gpus_per_node", [1, 4, 8, 72])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_groups_of_all_axes_by_counting_ranks(layout: Layout, gpus_per_node: int) -> None:
    for axis in AXES:
        if layout.tp > 1 and axis in ("ep", "expert_fsdp", "expert_dp"):
            continue  # the two do not go together
        groups = groups_of(layout, axis)
        found = group_of_axis(layout, axis, gpus_per_node)
        assert {found.ranks} == {len(ranks) for ranks in groups}, axis
        assert (found.in_node, found.nodes) == over_nodes(groups, gpus_per_node), axis


def test_groups_that_nodes_cut_in_unequal_parts() -> None:
    # Of 9 ranks 8 are in one node and 1 in another; of 12 there are 8 and 4.
    assert group_of_axis(Layout(dp=1, fsdp=9), "fsdp", 8) == RankGroup(ranks=9, in_node=1, nodes=2)
    assert group_of_axis(Layout(dp=1, fsdp=12), "fsdp", 8) == RankGroup(ranks=12, in_node=4, nodes=2)
    # Replicas of experts are 4 ranks apart, as ep = 2 and 2 shards of experts are between them.
    replicas = group_of_axis(Layout(dp=2, fsdp=4, ep=2), "expert_dp", 4)
    assert replicas == RankGroup(ranks=2, in_node=1, nodes=2)


def test_a_ring_over_unequal_parts_has_the_steps_of_both_links() -> None:
    # Round 9 ranks 7 steps of 2 us stay in a node and 1 of 10 us leaves it, by the link of the rank that is alone:
    # 8/9 x 90 MB / 40 GB/s = 2 ms, 24 us, a call.
    group = RankGroup(ranks=9, in_node=1, nodes=2)
    traffic = Traffic(calls=1, bytes_in=10_000_000, bytes_out=90_000_000)
    assert seconds_of_collective("all_gather", traffic, group, ESTIMATE) == pytest.approx(2e-3 + 32.4e-6)


def test_an_all_gather_in_a_node() -> None:
    # 7/8 x 800 MB / 300 GB/s = 2333.3 us; 2 calls of 7 steps of 2 us and 8.4 us: 44.8 us.
    assert seconds_of_collective("all_gather", GATHER, NODE, ESTIMATE) == pytest.approx(2333.333e-6 + 44.8e-6)
    assert seconds_of_collective("reduce_scatter", SCATTER, NODE, ESTIMATE) == pytest.approx(2333.333e-6 + 44.8e-6)


def test_an_all_gather_across_nodes_leaves_by_all_links_of_a_node() -> None:
    # 8 GPUs x 40 GB/s = 320 GB/s leave a node, more than NVLink's 300: 15/16 x 800 MB / 300 GB/s = 2500 us. Of 15 steps
    # 1 crosses the network: 14 x 2 + 10 = 38 us, and 8.4 us, twice.
    assert seconds_of_collective("all_gather", GATHER, TWO_NODES, ESTIMATE) == pytest.approx(2500e-6 + 2 * 46.4e-6)


def test_groups_with_one_rank_a_node_use_the_network_alone() -> None:
    # 3/4 x 800 MB / 40 GB/s = 15 ms; 2 calls of 3 steps of 10 us and 8.4 us.
    assert seconds_of_collective("all_gather", GATHER, ONE_A_NODE, ESTIMATE) == pytest.approx(15e-3 + 2 * 38.4e-6)
    without = msgspec.structs.replace(ESTIMATE, node_link=None)
    assert seconds_of_collective("all_gather", GATHER, ONE_A_NODE, without) > 0


def test_an_all_reduce_goes_round_twice() -> None:
    # 2 x 7/8 x 800 MB / 300 GB/s = 4666.7 us; 14 steps of 2 us and a call: 36.4 us.
    assert seconds_of_collective("all_reduce", REDUCE, NODE, ESTIMATE) == pytest.approx(4666.667e-6 + 36.4e-6)


def test_an_all_reduce_across_many_nodes_takes_the_tree_where_steps_count() -> None:
    many = RankGroup(ranks=512, in_node=8, nodes=64)
    small = Traffic(calls=1, bytes_in=1_000_000, bytes_out=1_000_000)
    # Ring: 2 x (511/512 x 1 MB / 300 GB/s + 448 x 2 us + 63 x 10 us) = 3058.7 us. Tree of 64 nodes:
    # 2 x (1 MB / (0.92 x 300 GB/s) + 7 x 2 us + 6 x 10 us) = 2 x (3.62319 + 74) = 155.24638 us. And 8.4 us.
    assert seconds_of_collective("all_reduce", small, many, ESTIMATE) == pytest.approx(155.24638e-6 + 8.4e-6)
    large = Traffic(calls=1, bytes_in=10**10, bytes_out=10**10)
    # 10 GB: 2 x 511/512 x 33.33 ms + 2 x (896 + 630) us in a ring, which is less than 2 x 36.23 ms in a tree.
    ring = 2 * (511 / 512 * 10e9 / 300e9 + 1526e-6) + 8.4e-6
    assert seconds_of_collective("all_reduce", large, many, ESTIMATE) == pytest.approx(ring)


def test_an_all_to_all_uses_both_links_at_once() -> None:
    exchange = Traffic(calls=1, bytes_in=160_000_000, bytes_out=160_000_000)
    # Of 16 ranks 8 are in another node: 80 MB by 40 GB/s are 2 ms, beside 7/16 x 160 MB by 300 GB/s (233 us).
    assert seconds_of_collective("all_to_all", exchange, TWO_NODES, ESTIMATE) == pytest.approx(2e-3 + 18.4e-6)
    # In a node: 7/8 x 160 MB / 300 GB/s = 466.7 us, a step of 2 us, a call.
    assert seconds_of_collective("all_to_all", exchange, NODE, ESTIMATE) == pytest.approx(466.667e-6 + 10.4e-6)
    # What arrives may be more than what is sent.
    uneven = Traffic(calls=1, bytes_in=100_000_000, bytes_out=160_000_000)
    assert seconds_of_collective("all_to_all", uneven, NODE, ESTIMATE) == pytest.approx(466.667e-6 + 10.4e-6)


def test_messages_between_stages() -> None:
    # 40 MB by 40 GB/s are 1 ms, a step of 10 us, a call: stages of 8 ranks are in different nodes.
    across, within = Layout(dp=1, fsdp=8, pp=4), Layout(dp=1, fsdp=2, pp=4)
    assert seconds_of_message(40_000_000, across, ESTIMATE) == pytest.approx(1e-3 + 18.4e-6)
    assert seconds_of_message(40_000_000, across, BOUND) == pytest.approx(0.8e-3)
    # Stages of 2 ranks are in one node: 40 MB / 300 GB/s = 133.3 us, a step of 2 us, a call.
    assert seconds_of_message(40_000_000, within, ESTIMATE) == pytest.approx(40e6 / 300e9 + 10.4e-6)
    assert seconds_of_message(0, across, ESTIMATE) == 0
    # Received while it is sent.
    received = Traffic(calls=3, bytes_out=40_000_000)
    assert seconds_of_collective("receive", received, group_of_axis(across, "pp", 8), ESTIMATE) == 0


def test_one_rank_and_no_calls_take_no_time() -> None:
    for operation in get_args(CollectiveOp):
        assert seconds_of_collective(operation, REDUCE, RankGroup(ranks=1, in_node=1, nodes=1), ESTIMATE) == 0
        assert seconds_of_collective(operation, Traffic(), NODE, ESTIMATE) == 0


def test_infinite_bandwidth_without_latency_takes_no_time() -> None:
    infinite = LinkSpeed(bytes_per_s=float("inf"), latency_seconds=0)
    machine = msgspec.structs.replace(ESTIMATE, node_link=infinite, network_link=infinite, collective_call_seconds=0.0)
    for operation, group in product(get_args(CollectiveOp), (NODE, TWO_NODES, ONE_A_NODE)):
        assert seconds_of_collective(operation, REDUCE, group, machine) == 0


def test_links_of_unknown_speed_are_asked_for() -> None:
    within, across = Layout(dp=1, fsdp=8), Layout(dp=1, fsdp=2, tp=8)
    unknown = machine_of(made_cluster(node_link=None, network_link=None), "bound")
    rule = r"node_link = null: the layout has groups within a node, and the speed of the links of made there is unknown"
    with pytest.raises(ArgumentError, match=rule):
        seconds_of_collective("all_gather", GATHER, NODE, unknown)
    with pytest.raises(ArgumentError, match=r"give gb_per_s, of one GPU in one direction"):
        check_links(within, unknown)
    no_network = machine_of(made_cluster(network_link=None), "estimate")
    with pytest.raises(ArgumentError, match=r"network_link = null: the layout has groups across nodes"):
        check_links(across, no_network)
    check_links(within, no_network)
    check_links(Layout(dp=1), unknown)
    check_links(across, ESTIMATE)


def test_the_slowest_link_of_a_group() -> None:
    assert [link_of(group) for group in (NODE, TWO_NODES, ONE_A_NODE)] == ["node_link", "network_link", "network_link"]
    assert TWO_NODES.nodes == 2
