"""The seconds of each stretch of a step's work on one machine, and what of it may run beside something else."""

from collections import defaultdict
from collections.abc import Iterable

from counting.cost.cluster import Cluster
from counting.cost.step_time.collectives import (
    LeastBytes,
    LinkField,
    check_links,
    group_of_axis,
    least_bytes,
    link_of,
    seconds_of_collective,
    seconds_of_message,
)
from counting.cost.step_time.machine import Style, machine_of
from counting.cost.step_time.ops import seconds_of_ops
from counting.cost.step_time.products import with_fp8_products
from counting.cost.step_time.streams import OnLink, TimedStretch
from counting.ranks.profile import Axis, CollectiveOp, Traffic, collective_of
from counting.setup import Setup
from counting.work import Op, PassWork, StageWork, StepWork, StretchWork
from torch_models.layout import Layout

# Ring attention passes the gradients of keys and values on by an all-to-all, in which each rank sends its whole buffer
# to one neighbour: torch's `_AllToAllRotater`, torch/distributed/tensor/experimental/_context_parallel/_attention.py.
OF_RING_ATTENTION: tuple[CollectiveOp, Axis] = ("all_to_all", "cp")
OF_FULLY_SHARD: tuple[Axis, ...] = ("fsdp", "expert_fsdp", "dp", "expert_dp")


class StretchTimer:
    """Times stretches on a machine of `cluster`: for the bound of a step, or for its estimate.

    Linear layers multiply in FP8 where the cluster or else the setup says so. Where the cluster overlaps the exchange
    of experts, their all-to-all runs beside the ops, as where a forward and a backward pass are computed together
    (DualPipe: DeepSeek-AI 2024, arXiv 2412.19437, §3.2.1). Raises `UserError` if the cluster lacks rates or links that
    the step needs.
    """

    def __init__(self, setup: Setup, layout: Layout | None, cluster: Cluster, style: Style) -> None:
        ranks = 1 if layout is None else layout.ranks
        self.machine = machine_of(cluster, style, ranks=ranks, attention_kernel=cluster.attention_kernel)
        if layout is not None:
            check_links(layout, self.machine)
        in_fp8 = cluster.products_in_fp8
        self.products_in_fp8 = setup.precision_recipe.multiplies_in_fp8 if in_fp8 is None else in_fp8
        self._layout = layout
        self._of_exchange = "beside" if cluster.overlap_expert_exchange else "in_place"
        # Equal stages share their work: each is timed once.
        self._known: dict[tuple[int, bool, bool], tuple[StretchWork, TimedStretch]] = {}

    def message(self, message_bytes: int) -> float:
        """Seconds that a message of so many bytes takes from one stage to the next."""
        if not message_bytes:
            return 0.0
        return seconds_of_message(message_bytes, self._spread("messages"), self.machine)

    def stretch(self, work: StretchWork, *, in_layer: bool = False, exchanges: bool = False) -> TimedStretch:
        """The times of one stretch; `exchanges` is of a stretch that exchanges gradients with another stage.

        What any other sends to other stages is left out: messages are beside the passes.

        Where the machine is that of the bound, its ops are the fused ones, and its collectives are in `least_traffic`.
        Raises ArgumentError for a link of unknown speed that a collective needs.
        """
        key = id(work), in_layer, exchanges
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = work, self._timed(work, in_layer, exchanges)
        return known[1]

    def _timed(self, work: StretchWork, in_layer: bool, exchanges: bool) -> TimedStretch:
        bound = self.machine.style == "bound"
        ops: Iterable[Op] = work.fused_ops if bound and work.fused_ops is not None else work.ops
        if in_layer and self.products_in_fp8:
            ops = with_fp8_products(ops, is_bound=bound)
        seconds = seconds_of_ops(ops, self.machine)
        found: dict[str, list[OnLink]] = defaultdict(list)
        for key, traffic in ({} if bound else work.traffic).items():
            phase, operation, axis = collective_of(key)
            if operation in ("send", "receive"):
                if exchanges and operation == "send":
                    group = group_of_axis(self._spread(key), axis, self.machine.gpus_per_node)
                    found["in_place"].append(OnLink(axis, link_of(group), self.message(traffic.bytes_in)))
                continue
            on_link = self._on_link(key, traffic)
            if axis == "ep" and phase != "optimizer":
                found[self._of_exchange].append(on_link)
            elif axis not in OF_FULLY_SHARD or phase == "optimizer":
                found["in_place"].append(on_link)
            elif operation == "all_gather":
                found["gathers" if phase == "forward" else "prefetches"].append(on_link)
            elif operation == "reduce_scatter":
                found["reductions"].append(on_link)
            else:
                found["all_reduces"].append(on_link)
        return TimedStretch(
            products=seconds.products,
            attention=seconds.attention,
            memory=seconds.memory + seconds.launches,
            **{name: tuple(each) for name, each in found.items()},
        )

    def least_traffic(self, work: StretchWork, *, exchanges: bool = False) -> dict[LinkField, LeastBytes]:
        """What the collectives of a stretch move at least, by the slowest link that their groups cross.

        Messages to other stages are beside the passes, but those of a stretch that exchanges gradients.
        """
        found: dict[LinkField, LeastBytes] = {}
        for key, traffic in work.traffic.items():
            _, operation, axis = collective_of(key)
            if operation not in ("send", "receive") or exchanges:
                layout, size = self._spread(key), self.machine.gpus_per_node
                link = link_of(group_of_axis(layout, axis, size))
                moved = least_bytes(operation, traffic, layout, axis, size)
                found[link] = found.get(link, LeastBytes()).plus(moved)
        return found

    def passes(self, stage: StageWork, work: PassWork, *, exchanges: bool = False) -> list[tuple[TimedStretch, int]]:
        """The stretches of a pass through a stage in the order of execution, each with how often it runs in a row."""
        of_layers = [self.stretch(each, in_layer=True, exchanges=exchanges) for each in work.layers]
        runs = [(of_layers[index], count) for index, count in stage.runs]
        return [
            (self.stretch(work.before, exchanges=exchanges), 1),
            *(runs if work.ascending else reversed(runs)),
            (self.stretch(work.after, exchanges=exchanges), 1),
        ]

    def _on_link(self, key: str, traffic: Traffic) -> OnLink:
        _, operation, axis = collective_of(key)
        group = group_of_axis(self._spread(key), axis, self.machine.gpus_per_node)
        # Of a bound, the links of all GPUs of a node could carry what crosses nodes.
        if (operation, axis) == OF_RING_ATTENTION and self.machine.style == "estimate":
            operation = "send"
        seconds = seconds_of_collective(operation, traffic, group, self.machine)
        return OnLink(axis, link_of(group), seconds)

    def _spread(self, what: str) -> Layout:
        assert self._layout is not None, f"{what}: of one device"
        return self._layout


def has_experts(work: StepWork) -> bool:
    """Whether the step has products of experts: a mixture."""
    return any(
        op.kind == "grouped_product"
        for rank in work.ranks
        for stage in rank.stages
        for each in stage.passes.values()
        for stretch in (each.before, *each.layers, each.after)
        for op in stretch.ops
    )
