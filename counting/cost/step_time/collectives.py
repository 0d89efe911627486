"""The seconds of collectives on the links that their groups cross.

An estimate is that of rings, as NCCL runs them: each of n ranks passes on (n - 1) / n of the bytes, in n - 1 steps. A
bound is what no algorithm beats: what a GPU, or all GPUs of a node together, must receive or send at printed speeds.
"""

from collections import Counter
from functools import lru_cache
from math import ceil, lcm, log2
from typing import Literal, NamedTuple, get_args

import msgspec

from counting.cost.step_time.machine import LinkSpeed, Machine
from counting.ranks.profile import Axis, CollectiveOp, Traffic
from torch_models.errors import ArgumentError
from torch_models.layout import Layout

LinkField = Literal["node_link", "network_link"]

TREE_SHARE = 0.92  # of the ring's bandwidth that NCCL's trees reach (github.com/NVIDIA/nccl, src/graph/tuning.cc)


class RankGroup(msgspec.Struct, frozen=True, kw_only=True):
    """The ranks of one group of an axis: `ranks` of them on `nodes`, of which the one with fewest has `in_node`."""

    ranks: int
    in_node: int
    nodes: int

    @property
    def links(self) -> tuple[LinkField, ...]:
        """The links that the group's bytes cross; of one rank none."""
        within: tuple[LinkField, ...] = ("node_link",) if self.ranks > self.nodes else ()
        across: tuple[LinkField, ...] = ("network_link",) if self.nodes > 1 else ()
        return within + across


def group_of_axis(layout: Layout, axis: Axis, gpus_per_node: int) -> RankGroup:
    """The group of `axis` in a resolved layout, by the order of ranks that `Layout` states.

    Its n ranks are a stride s apart, and a group begins at each multiple of n x s; nodes begin at multiples of
    `gpus_per_node`. fully_shard's group takes in cp; the experts' axes have no tp. Of groups that nodes cut in unequal
    parts, the smallest part counts: it has the fewest links to the network. So does the group on most nodes.
    """
    ranks, stride = _ranks_and_stride(layout, axis)
    in_node, nodes = _over_nodes(ranks, stride, layout.ranks, gpus_per_node)
    return RankGroup(ranks=ranks, in_node=in_node, nodes=nodes)


@lru_cache(maxsize=256)
def _over_nodes(ranks: int, stride: int, all_ranks: int, gpus_per_node: int) -> tuple[int, int]:
    """The fewest ranks of a group in one of its nodes, and the most nodes of a group, of all groups of `all_ranks`."""
    block = ranks * stride
    if all_ranks <= gpus_per_node or gpus_per_node % block == 0:
        return ranks, 1
    if stride >= gpus_per_node:
        return 1, ranks
    if block % gpus_per_node == 0 and gpus_per_node % stride == 0:
        return gpus_per_node // stride, block // gpus_per_node
    period = min(all_ranks, lcm(block, gpus_per_node))
    parts = Counter((rank // block, rank % stride, rank // gpus_per_node) for rank in range(period))
    return min(parts.values()), max(Counter((number, place) for number, place, _ in parts).values())


def _ranks_and_stride(layout: Layout, axis: Axis) -> tuple[int, int]:
    of_axes: dict[Axis, tuple[int, int]] = {
        "tp": (layout.tp, 1),
        "cp": (layout.cp, layout.tp),
        "fsdp": (layout.shards, layout.tp),
        "dp": (layout.replicas, layout.tp * layout.shards),
        "ep": (layout.ep, layout.tp),
        "expert_fsdp": (layout.expert_fsdp, layout.tp * layout.ep),
        "expert_dp": (layout.expert_replicas, layout.tp * layout.ep * layout.expert_fsdp),
        "pp": (layout.pp, layout.ranks_of_stage),
    }
    return of_axes[axis]


AXES: tuple[Axis, ...] = get_args(Axis)


def check_links(layout: Layout, machine: Machine) -> None:
    """Raise `ArgumentError` for `node_link` or `network_link` if a group of `layout` needs one of unknown speed."""
    for axis in AXES:
        for field in group_of_axis(layout, axis, machine.gpus_per_node).links:
            _link(machine, field)


def link_of(group: RankGroup) -> LinkField:
    """The slowest kind of link that the group crosses, for a row of a trace."""
    return "network_link" if group.nodes > 1 else "node_link"


def seconds_of_collective(operation: CollectiveOp, traffic: Traffic, group: RankGroup, machine: Machine) -> float:
    """Seconds of all calls of `traffic`, one after another, with nothing else on the links; of one rank 0.

    What is received point to point takes no seconds of its own: they are its sender's, and a link carries both
    directions at once. Raises `ArgumentError` for `node_link` or `network_link` where the group needs one of unknown
    speed.
    """
    if group.ranks == 1 or not traffic.calls or operation == "receive":
        return 0.0
    if operation == "all_reduce" and group.nodes > 1:
        ring = _ring_seconds(traffic.bytes_in, 2, traffic.calls, group, machine)
        return min(ring, _tree_seconds(traffic.bytes_in, traffic.calls, group, machine))
    if operation == "all_reduce":
        return _ring_seconds(traffic.bytes_in, 2, traffic.calls, group, machine)
    if operation in ("all_gather", "reduce_scatter"):
        return _ring_seconds(max(traffic.bytes_in, traffic.bytes_out), 1, traffic.calls, group, machine)
    step = _link(machine, link_of(group)).latency_seconds
    latency = traffic.calls * (machine.collective_call_seconds + step)
    if operation == "all_to_all":
        return _exchange_seconds(max(traffic.bytes_in, traffic.bytes_out), group, machine) + latency
    return traffic.bytes_in / _link(machine, link_of(group)).bytes_per_s + latency


def seconds_of_message(sent_bytes: int, layout: Layout, machine: Machine) -> float:
    """Seconds until what one stage sends has arrived at the next; 0 bytes take none.

    If some neighbours are in different nodes, all are taken to be: the slowest hop sets the pace of the pipeline.
    """
    traffic = Traffic(calls=1, bytes_in=sent_bytes) if sent_bytes else Traffic()
    return seconds_of_collective("send", traffic, group_of_axis(layout, "pp", machine.gpus_per_node), machine)


def _ring_bandwidth(group: RankGroup, machine: Machine) -> float:
    """Bytes a second that pass each rank, over all rings: a node's rings leave it by the links of all its ranks.

    As nccl-tests counts "bus bandwidth" (github.com/NVIDIA/nccl-tests, doc/PERFORMANCE.md).
    """
    speeds = {"node_link": 1, "network_link": group.in_node}
    return min(_link(machine, field).bytes_per_s * speeds[field] for field in group.links)


def _ring_seconds(size: int, rounds: int, calls: int, group: RankGroup, machine: Machine) -> float:
    """`rounds` x ((n - 1) / n x bytes / bandwidth + n - 1 steps); an all-reduce goes round twice.

    Of the steps of a round, one a node but one cross the network (NCCL, src/graph/tuning.cc, `nInterSteps`).
    """
    ranks = group.ranks
    across = group.nodes - 1
    steps = (ranks - 1 - across) * _latency("node_link", group, machine)
    steps += across * _latency("network_link", group, machine)
    moving = (ranks - 1) / ranks * size / _ring_bandwidth(group, machine)
    return rounds * (moving + calls * steps) + calls * machine.collective_call_seconds


def _tree_seconds(size: int, calls: int, group: RankGroup, machine: Machine) -> float:
    """An all-reduce up and down a tree of nodes, with a chain in each: fewer steps across many nodes than a ring.

    2 x (ranks of a node - 1) steps within a node and 2 x log2(nodes) across (NCCL, src/graph/tuning.cc); all bytes pass
    twice. Of a node, as many ranks are taken as a group in equal parts has there.
    """
    steps = (ceil(group.ranks / group.nodes) - 1) * _latency("node_link", group, machine)
    steps += log2(group.nodes) * _latency("network_link", group, machine)
    moving = size / (TREE_SHARE * _ring_bandwidth(group, machine))
    return 2 * (moving + calls * steps) + calls * machine.collective_call_seconds


def _exchange_seconds(size: int, group: RankGroup, machine: Machine) -> float:
    """An all-to-all of even parts: those of ranks of other nodes by the network, beside those of the own node."""
    ranks, in_node = group.ranks, group.in_node
    parts = {"node_link": in_node - 1, "network_link": ranks - in_node}
    return max(parts[field] / ranks * size / _link(machine, field).bytes_per_s for field in group.links)


class LeastBytes(NamedTuple):
    """What no algorithm moves less than, in bytes a rank: on all its links together, and on that to the network.

    A link carries both directions at once, each at its full speed.
    """

    received: float = 0.0
    sent: float = 0.0
    from_network: float = 0.0
    to_network: float = 0.0

    def plus(self, other: "LeastBytes", times: int = 1) -> "LeastBytes":
        """The sum, with `times` of `other`."""
        return LeastBytes(*(own + times * more for own, more in zip(self, other, strict=True)))


def least_bytes(
    operation: CollectiveOp, traffic: Traffic, layout: Layout, axis: Axis, gpus_per_node: int
) -> LeastBytes:
    """What all calls of `traffic` move at least, on the mean of all ranks.

    - A rank receives (n - 1) / n of what it gathers, and sends so much to scatter. Of what it reduces, it sends its own
      and receives the sum of all others, each as large as the result.
    - Of m nodes that share a group, each receives by the network what it has not, once: m - 1 times the whole. The sum
      of all others goes to each of them, and its own leaves it.
    - Torch's ring attention sends all to the next rank, with an all-to-all (`_AllToAllRotater` in
      torch/distributed/tensor/experimental): one rank of each node to the next one.
    - Experts need not exchange anything: routing may keep tokens in their rank, and a token that several experts of a
      rank or a node want need not be sent to each.
    - Of what stages send each other, some may stay in a node.
    """
    ranks, stride = _ranks_and_stride(layout, axis)
    size = max(traffic.bytes_in, traffic.bytes_out)
    if ranks == 1 or operation == "receive" or (operation == "all_to_all" and axis != "cp"):
        return LeastBytes()
    if operation == "send":
        return LeastBytes(sent=size)
    nodes = _mean_nodes(ranks, stride, layout.ranks, gpus_per_node)
    if operation in ("all_reduce", "all_to_all"):
        # A group in one node needs no network. If there is such a one, no other is on more than two.
        of_nodes = min(nodes, 2 * (nodes - 1)) / ranks * size
        return LeastBytes(size, size, of_nodes, of_nodes)
    own, of_nodes = (ranks - 1) / ranks * size, (nodes - 1) / ranks * size
    if operation == "all_gather":
        return LeastBytes(received=own, from_network=of_nodes)
    return LeastBytes(sent=own, to_network=of_nodes)


@lru_cache(maxsize=256)
def _mean_nodes(ranks: int, stride: int, all_ranks: int, gpus_per_node: int) -> float:
    """Nodes that a group of `ranks` is spread over, on the mean of all groups of `all_ranks`."""
    block = ranks * stride
    if all_ranks <= gpus_per_node or gpus_per_node % block == 0:
        return 1
    if stride >= gpus_per_node:
        return ranks
    if block % gpus_per_node == 0 and gpus_per_node % stride == 0:
        return block // gpus_per_node
    parts = {(rank // block, rank % stride, rank // gpus_per_node) for rank in range(all_ranks)}
    return len(parts) * ranks / all_ranks


def least_seconds(moved: LeastBytes, link: LinkField, machine: Machine) -> float:
    """Seconds that no run moves these bytes in, of groups whose slowest link is `link`."""
    node = machine.node_link
    of_all = max(moved.received, moved.sent)
    if not of_all:
        return 0.0
    if link == "node_link":
        return of_all / _link(machine, link).bytes_per_s
    to_network = _link(machine, link).bytes_per_s
    both = to_network + (0.0 if node is None else node.bytes_per_s)
    return max(of_all / both, max(moved.from_network, moved.to_network) / to_network)


def _latency(field: LinkField, group: RankGroup, machine: Machine) -> float:
    return _link(machine, field).latency_seconds if field in group.links else 0.0


def _link(machine: Machine, field: LinkField) -> LinkSpeed:
    found = machine.node_link if field == "node_link" else machine.network_link
    if found is None:
        where = "within a node" if field == "node_link" else "across nodes"
        what = f"the layout has groups {where}, and the speed of the links of {machine.gpu} there is unknown"
        raise ArgumentError(field, None, f"{what}: give gb_per_s, of one GPU in one direction")
    return found
