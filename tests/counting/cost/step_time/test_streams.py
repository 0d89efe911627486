"""Stretches on the compute stream, with collectives beside it: every number by hand."""

import random

import pytest

from counting.cost.step_time.streams import OnLink, PassTime, TimedStretch, TraceSegment, lay_out_pass
from counting.ranks.profile import Axis


def fsdp(seconds: float) -> tuple[OnLink, ...]:
    return (OnLink("fsdp", "network_link", seconds),)


def in_place(axis: Axis, seconds: float, *, node: bool = False) -> tuple[OnLink, ...]:
    return (OnLink(axis, "node_link" if node else "network_link", seconds),)


def parts(time: PassTime) -> float:
    return time.products + time.attention + time.memory + sum(seconds for _, seconds in time.communication)


EMBEDDING = TimedStretch(memory=1, gathers=fsdp(2))
LAYER = TimedStretch(products=4, gathers=fsdp(3))
LOSS = TimedStretch(products=5, gathers=fsdp(1), prefetches=fsdp(3))
LAYER_BACKWARD = TimedStretch(products=8, prefetches=fsdp(3), reductions=fsdp(6))
EMBEDDING_BACKWARD = TimedStretch(memory=1, reductions=fsdp(2))
MICRO_BATCH = [(EMBEDDING, 1), (LAYER, 2), (LOSS, 1), (LAYER_BACKWARD, 2), (EMBEDDING_BACKWARD, 1)]


def test_a_micro_batch_of_two_layers_under_fully_shard() -> None:
    """With the rules of torch/distributed/fsdp/_fully_shard, `FSDPParamGroup`; products keep their speed.

    | compute stream                  | link                                                          |
    | 0-2 waits                       | 0-2 gathers the embedding                                     |
    | 2-3 embedding, 3-5 waits        | 2-5 gathers layer 0                                           |
    | 5-9 layer 0                     | 5-8 gathers layer 1                                           |
    | 9-13 layer 1                    | 9-10 gathers the head                                         |
    | 13-18 head and loss             | 13-16 gathers layer 1                                         |
    | 18-26 layer 1, backward         | 18-21 gathers layer 0                                         |
    | 26-34 layer 0, backward         | 26-32 reduces layer 1, 32-35 gathers the embedding            |
    | 34-35 waits, 35-36 embedding    | 35-41 reduces layer 0                                         |
    | 36-43 waits                     | 41-43 reduces the embedding                                   |
    """
    time = lay_out_pass(MICRO_BATCH, 1.0)
    assert time == PassTime(43, products=4 + 4 + 5 + 8 + 8, memory=1 + 1, communication=(("fsdp", 2 + 2 + 1 + 7),))


def test_an_empty_stretch_is_none() -> None:
    """The head's gather is called when the last layer begins, though a forward pass has nothing after its layers."""
    with_empty = [MICRO_BATCH[0], MICRO_BATCH[1], (TimedStretch(), 1), *MICRO_BATCH[2:]]
    assert lay_out_pass(with_empty, 1.0) == lay_out_pass(MICRO_BATCH, 1.0)
    names = [["embedding"], ["0", "1"], ["nothing"], ["loss"], ["1 back", "0 back"], ["embedding back"]]
    assert "nothing" not in {segment.name for segment in lay_out_pass(with_empty, 1.0, names).segments}


def test_segments_are_those_of_the_table() -> None:
    names = [["embedding"], ["0", "1"], ["loss"], ["1 back", "0 back"], ["embedding back"]]
    time = lay_out_pass(MICRO_BATCH, 1.0, names)
    rows = [(name, start, end) for row, name, start, end in time.segments if row == "compute"]
    assert rows == [
        ("embedding", 2, 3),
        ("0", 5, 9),
        ("1", 9, 13),
        ("loss", 13, 18),
        ("1 back", 18, 26),
        ("0 back", 26, 34),
        ("embedding back", 35, 36),
    ]
    links = [(start, end) for row, _, start, end in time.segments if row == "fsdp"]
    assert links == [(0, 2), (2, 5), (5, 8), (9, 10), (13, 16), (18, 21), (26, 32), (32, 35), (35, 41), (41, 43)]
    assert time.seconds == 43


def test_products_beside_a_collective_lose_speed() -> None:
    """4 s of products at half their speed and 2 s of others would take 10 s; 3 s beside do 3/10 of it.

    The other 7/10 of 6 s take 4.2 s: 7.2 s. Of the products, 3/10 take 4 s longer in all: 4 + 0.3 x 4 = 5.2 s.
    """
    stretch = TimedStretch(products=4, attention=1, memory=1, prefetches=fsdp(3))
    time = lay_out_pass([(stretch, 1)], 0.5)
    assert time[:4] == pytest.approx((7.2, 5.2, 1, 1))
    assert time.communication == ()


def test_products_are_as_slow_as_that_until_the_end_if_the_collective_is_longer() -> None:
    """4 s at half the speed are 8 s; 2 of 10 s of the collective are exposed."""
    time = lay_out_pass([(TimedStretch(products=4, prefetches=fsdp(10)), 1)], 0.5)
    assert time == PassTime(10, products=8, communication=(("fsdp", 2),))


def test_a_collective_in_place_on_the_same_link_stops_those_beside() -> None:
    """2 s of products and 2 s of tp: half of the time the link is free, so that 2 of 3 s are done after 4 s."""
    stretch = TimedStretch(products=2, in_place=in_place("tp", 2), prefetches=fsdp(3))
    time = lay_out_pass([(stretch, 1)], 1.0)
    assert time == PassTime(5, products=2, communication=(("fsdp", 1), ("tp", 2)))


def test_a_collective_in_place_on_another_link_does_not() -> None:
    stretch = TimedStretch(products=2, in_place=in_place("tp", 2, node=True), prefetches=fsdp(3))
    assert lay_out_pass([(stretch, 1)], 1.0) == PassTime(4, products=2, communication=(("tp", 2),))


def test_an_overlapped_exchange_ends_with_its_stretch() -> None:
    """Two layers of 4 s with an exchange of 3 s, hidden, and two of 2 s, of which 1 s is not."""

    def layer(seconds: float) -> TimedStretch:
        return TimedStretch(attention=seconds, beside=(OnLink("ep", "network_link", 3),))

    time = lay_out_pass([(layer(4), 2), (layer(2), 2)], 0.5)
    assert time == PassTime(14, attention=12, communication=(("ep", 2),))


def test_replicas_are_reduced_behind_what_follows() -> None:
    """fsdp within nodes, dp across: two layers of 4 s, each with 1 s to reduce and 5 s over the replicas.

    0-4 layer 1; 4-5 its reduce-scatter, then 5-10 its all-reduce. 4-8 layer 0; 8-9 its reduce-scatter; the network is
    free at 10, so that 10-15 is the second all-reduce. From 8 to 9 fsdp is waited for, then dp.
    """
    layer = TimedStretch(
        products=4,
        reductions=(OnLink("fsdp", "node_link", 1),),
        all_reduces=(OnLink("dp", "network_link", 5),),
    )
    time = lay_out_pass([(layer, 2)], 1.0)
    assert time == PassTime(15, products=8, communication=(("dp", 6), ("fsdp", 1)))


def test_without_collectives_a_pass_takes_as_long_as_it_computes() -> None:
    stretch = TimedStretch(products=1, attention=2, memory=4, gathers=fsdp(0), reductions=fsdp(0))
    assert lay_out_pass([(stretch, 1000)], 0.5).seconds == 7000


def test_any_number_of_equal_layers_is_extended() -> None:
    """The gathers are longer than the layers: 10^12 of them take 3 s each, and the last computes for 2 s more."""
    stretch = TimedStretch(products=2, gathers=fsdp(3))
    time = lay_out_pass([(stretch, 10**12)], 1.0)
    assert time.seconds == pytest.approx(3 * 10**12 + 2, rel=1e-12)
    assert parts(time) == pytest.approx(time.seconds, rel=1e-12)


def random_stretch(numbers: random.Random, slower: float = 1.0) -> TimedStretch:
    def some(axis: Axis) -> tuple[OnLink, ...]:
        link = numbers.choice(("node_link", "network_link"))
        seconds = numbers.choice((0.0, numbers.random() * 4))
        return (OnLink(axis, link, seconds * slower),)

    return TimedStretch(
        products=numbers.random() * 3,
        attention=numbers.random(),
        memory=numbers.random(),
        in_place=some("tp"),
        beside=some("ep"),
        gathers=some("fsdp"),
        prefetches=some("fsdp"),
        reductions=some("fsdp"),
        all_reduces=some("dp"),
    )


@pytest.mark.parametrize("seed", range(40))
def test_extension_is_what_every_single_layer_gives(seed: int) -> None:
    numbers = random.Random(seed)
    stretches = [(random_stretch(numbers), numbers.randrange(1, 60)) for _ in range(3)]
    one_by_one = [(stretch, 1) for stretch, count in stretches for _ in range(count)]
    extended, looped = lay_out_pass(stretches, 0.7), lay_out_pass(one_by_one, 0.7)
    assert extended[:4] == pytest.approx(looped[:4], rel=1e-6)
    assert dict(extended.communication) == pytest.approx(dict(looped.communication), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("seed", range(40))
def test_parts_sum_to_the_pass_which_is_no_shorter_than_compute_or_any_link(seed: int) -> None:
    numbers = random.Random(seed)
    stretches = [(random_stretch(numbers), numbers.randrange(1, 9)) for _ in range(4)]
    time = lay_out_pass(stretches, 0.6)
    assert parts(time) == pytest.approx(time.seconds, rel=1e-9)
    assert time.seconds >= sum(stretch.compute * count for stretch, count in stretches) * (1 - 1e-12)
    for link in ("node_link", "network_link"):
        busy = sum(
            each.seconds * count for stretch, count in stretches for each in stretch.collectives if each.link == link
        )
        assert time.seconds >= busy * (1 - 1e-9)


@pytest.mark.parametrize("seed", range(40))
def test_slower_links_make_no_pass_faster(seed: int) -> None:
    seconds = []
    for slower in (1.0, 1.1, 1.5, 3.0):
        numbers = random.Random(seed)
        stretches = [(random_stretch(numbers, slower), numbers.randrange(1, 9)) for _ in range(4)]
        seconds.append(lay_out_pass(stretches, 0.6).seconds)
    assert seconds == sorted(seconds)


def test_what_a_trace_shows_of_a_collective_in_place() -> None:
    stretch = TimedStretch(products=2, in_place=in_place("ep", 3))
    assert lay_out_pass([(stretch, 1)], 1.0, [["layer 0"]]).segments == (
        TraceSegment("compute", "layer 0", 0, 2),
        TraceSegment("ep", "layer 0", 2, 5),
    )
