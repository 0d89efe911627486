"""Which collectives of a stretch run beside what."""

from typing import Any

import pytest
from msgspec import structs

from counting.cost.step_time.collectives import LeastBytes
from counting.cost.step_time.streams import OnLink, TimedStretch
from counting.cost.step_time.stretches import StretchTimer, has_experts
from counting.ranks.profile import Traffic
from counting.work import Op, PassWork, StageWork, StretchWork
from tests.counting.cost.hand_made import GIGA, SETUP, cluster, copies, pipeline_step, products, sharded_step
from torch_models.layout import Layout

CALL = 8.4e-6
# Neighbours of tp, cp and fsdp are in one node of 8; replicas and stages are in others.
LAYOUT = Layout(num_gpus=64, dp=4, fsdp=2, tp=2, cp=2, pp=2)


def timer(layout: Layout = LAYOUT, **fields: Any) -> StretchTimer:
    return StretchTimer(SETUP, layout, structs.replace(cluster(), **fields), "estimate")


def one(operation: str, axis: str, phase: str = "forward") -> dict[str, Traffic]:
    return {f"{phase} {operation} {axis}": Traffic(calls=1, bytes_in=GIGA, bytes_out=GIGA)}


@pytest.mark.parametrize(
    ("traffic", "place"),
    [
        (one("all_gather", "fsdp"), "gathers"),
        (one("all_gather", "fsdp", "backward"), "prefetches"),
        (one("reduce_scatter", "fsdp", "backward"), "reductions"),
        (one("all_reduce", "dp", "backward"), "all_reduces"),
        (one("all_gather", "tp"), "in_place"),
        (one("reduce_scatter", "tp", "backward"), "in_place"),
        (one("all_gather", "cp", "backward"), "in_place"),
        (one("all_reduce", "fsdp", "optimizer"), "in_place"),
        (one("all_reduce", "pp", "optimizer"), "in_place"),
    ],
)
def test_where_a_collective_runs(traffic: dict[str, Traffic], place: str) -> None:
    found = timer().stretch(StretchWork(traffic=traffic))
    (key,) = traffic
    axis = key.split()[2]
    (on_link,) = getattr(found, place)
    assert (on_link.axis, on_link.link) == (axis, "network_link" if axis in ("dp", "pp") else "node_link")
    assert on_link.seconds > 0
    assert found.collectives == (on_link,)


def test_exchanges_of_experts_run_in_place_or_beside() -> None:
    layout = Layout(num_gpus=4, dp=1, fsdp=4, ep=4)
    work = StretchWork(traffic=one("all_to_all", "ep"))
    plain, overlapped = timer(layout).stretch(work), timer(layout, overlap_expert_exchange=True).stretch(work)
    assert plain.in_place == overlapped.beside
    assert not plain.beside
    assert not overlapped.in_place
    assert plain.in_place[0].seconds == pytest.approx(3 / 4, abs=1e-4)  # of 1 GB at 1 GB/s, for the three others


def test_norms_of_experts_are_summed_in_place() -> None:
    """Clipping waits for all norms, also where the exchange of tokens is overlapped."""
    layout = Layout(num_gpus=4, dp=1, fsdp=4, ep=4)
    found = timer(layout, overlap_expert_exchange=True).stretch(
        StretchWork(traffic=one("all_reduce", "ep", "optimizer"))
    )
    (on_link,) = found.in_place
    assert on_link.seconds == pytest.approx(2 * 3 / 4, abs=1e-4)  # twice round the ring of four, 1 GB at 1 GB/s
    assert not found.beside


def test_ring_attention_passes_whole_buffers_on() -> None:
    """Two calls pass 1 GB of gradients each on to the next rank, by a link of 1 GB/s: 2 s."""
    layout = Layout(num_gpus=4, dp=1, cp=4)
    of_ring = {"backward all_to_all cp": Traffic(calls=2, bytes_in=2 * GIGA, bytes_out=2 * GIGA)}
    (found,) = timer(layout).stretch(StretchWork(traffic=of_ring)).in_place
    assert (found.axis, found.seconds) == ("cp", pytest.approx(2 + 2 * CALL, rel=1e-12))
    bound = StretchTimer(SETUP, layout, cluster(), "bound").stretch(StretchWork(traffic=of_ring))
    assert all(each.seconds <= found.seconds / 2 for each in bound.in_place)


def test_messages_are_beside_the_passes_but_those_of_an_exchange() -> None:
    work = StretchWork(traffic=one("send", "pp", "backward") | one("receive", "pp", "backward"))
    assert timer().stretch(work) == TimedStretch()
    exchanged = timer().stretch(work, exchanges=True)
    assert exchanged.in_place == (OnLink("pp", "network_link", pytest.approx(1, abs=1e-4)),)
    assert timer().message(GIGA) == pytest.approx(1, abs=1e-4)
    assert timer().message(0) == 0


def test_descending_passes_run_their_layers_in_reverse() -> None:
    """Layers of 1 s, 1 s and 2 s: a run of two and one."""
    layers = (StretchWork(ops=(products(1),)), StretchWork(ops=(products(2),)))
    before, after = StretchWork(ops=(copies(3),)), StretchWork(ops=(copies(4),))
    stage = StageWork(stage=0, runs=((0, 2), (1, 1)), passes={})
    for ascending, expected in ((True, [(3, 1), (1, 2), (2, 1), (4, 1)]), (False, [(3, 1), (2, 1), (1, 2), (4, 1)])):
        one_pass = PassWork(before=before, layers=layers, after=after, ascending=ascending)
        found = timer().passes(stage, one_pass)
        assert [(stretch.compute, count) for stretch, count in found] == expected


def test_what_a_stretch_moves_at_least_is_summed_by_link() -> None:
    """1 GB each: 3/4 over the 4 ranks of fsdp and cp in a node; over dp, of 4 nodes with a rank each, all of it."""
    work = StretchWork(
        traffic=one("all_gather", "fsdp")
        | one("reduce_scatter", "fsdp", "backward")
        | one("all_reduce", "dp", "backward")
        | one("send", "pp", "backward")
    )
    bound = StretchTimer(SETUP, LAYOUT, cluster(), "bound")
    in_node, across = LeastBytes(received=0.75 * GIGA, sent=0.75 * GIGA), LeastBytes(GIGA, GIGA, GIGA, GIGA)
    assert bound.least_traffic(work) == {"node_link": in_node, "network_link": across}
    norms = bound.least_traffic(StretchWork(traffic=one("all_reduce", "pp", "optimizer")))
    assert norms == {"network_link": LeastBytes(GIGA, GIGA, GIGA, GIGA)}
    exchanged = bound.least_traffic(work, exchanges=True)
    assert exchanged == {"node_link": in_node, "network_link": across._replace(sent=2 * GIGA)}
    assert not bound.stretch(work).collectives


def test_a_mixture_is_known_by_its_grouped_products() -> None:
    work = pipeline_step(2, 2)
    assert not has_experts(work)
    grouped = StretchWork(ops=(Op(kind="grouped_product", name="_grouped_mm"),))
    last = work.ranks[1].stages[0]
    forward = PassWork(layers=(grouped,))
    stage = structs.replace(last, passes=last.passes | {"forward": forward})
    ranks = (work.ranks[0], structs.replace(work.ranks[1], stages=(stage,)))
    assert has_experts(structs.replace(work, ranks=ranks))
    assert not has_experts(sharded_step())
