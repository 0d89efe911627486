"""The seconds of collectives on the links that their groups cross."""

from typing import Literal

import msgspec

from counting.cost.step_time.machine import Machine
from counting.ranks.profile import Axis, CollectiveOp, Traffic
from torch_models.layout import Layout


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """The ranks of one group of an axis: `ranks` of them, of which at most `in_node` share a node."""

    ranks: int
    in_node: int


def group_of(layout: Layout, axis: Axis, gpus_per_node: int) -> Group:
    """The group of `axis` in a resolved layout, by the order of ranks that `Layout` states."""
    raise NotImplementedError


def link_of(group: Group, machine: Machine) -> Literal["node_link", "network_link"]:
    """The slowest kind of link that the group crosses, for a row of a trace."""
    raise NotImplementedError


def seconds_of_collective(operation: CollectiveOp, traffic: Traffic, group: Group, machine: Machine) -> float:
    """Seconds of all calls of `traffic`, one after another, with nothing else on the links.

    Raises ArgumentError for `node_link` or `network_link` where the group needs one of unknown speed.
    """
    raise NotImplementedError


def seconds_of_message(sent_bytes: int, layout: Layout, machine: Machine) -> float:
    """Seconds until what one stage sends has arrived at the next; 0 bytes take none."""
    raise NotImplementedError
