"""Passes of the ranks of a pipeline laid out in time: known bubbles, and small pipelines by hand."""

import time
from collections.abc import Sequence

import pytest

from counting.cost.step_time.pipeline import RankTime, Stages, TimedPass, lay_out_ranks
from counting.cost.step_time.streams import PassTime
from counting.ranks.pipeline import PassKind
from counting.work import OrderedPass

Orders = list[list[OrderedPass]]


def one(kind: PassKind, stage: int, micro_batch: int | None) -> OrderedPass:
    return OrderedPass(kind=kind, key=kind, stage=stage, micro_batch=micro_batch)


def timed(**seconds: float) -> dict[str, TimedPass]:
    return {kind: TimedPass(PassTime(each, products=each)) for kind, each in seconds.items()}


def run(
    orders: Orders,
    stages: int,
    times: dict[str, TimedPass],
    *,
    v_shaped: bool = False,
    messages: tuple[float, float] = (0, 0),
    share: float = 1.0,
) -> list[RankTime]:
    """Every stage alike; the stages go round the ranks, or there and back."""
    ranks = len(orders)
    rank_of = {stage: stages - 1 - stage if v_shaped and stage >= ranks else stage % ranks for stage in range(stages)}
    timetable = {(stage, kind): each for stage in range(stages) for kind, each in times.items()}
    return lay_out_ranks(orders, timetable, Stages(rank_of, dict.fromkeys(range(stages), messages)), share)


def gpipe(ranks: int, micro_batches: int) -> Orders:
    """All forward passes, then all backward passes."""
    return [
        [one("forward", rank, batch) for batch in range(micro_batches)]
        + [one("backward", rank, batch) for batch in range(micro_batches)]
        for rank in range(ranks)
    ]


def one_forward_one_backward(ranks: int, micro_batches: int) -> Orders:
    """p - 1 - r forward passes, then one forward and one backward in turn, then the backward passes that are left."""
    orders = []
    for rank in range(ranks):
        warm_up = min(ranks - 1 - rank, micro_batches)
        order = [one("forward", rank, batch) for batch in range(warm_up)]
        for batch in range(micro_batches):
            if batch + warm_up < micro_batches:
                order.append(one("forward", rank, batch + warm_up))
            order.append(one("backward", rank, batch))
        orders.append(order)
    return orders


def interleaved(ranks: int, chunks: int, micro_batches: int) -> Orders:
    """Narayanan et al. 2021 (arXiv 2104.04473), §2.2: rounds of p micro-batches through one chunk after the other."""
    total = chunks * micro_batches

    def place(unit: int, rank: int, *, forward: bool) -> tuple[int, int]:
        group, within = divmod(unit, ranks * chunks)
        chunk, batch = divmod(within, ranks)
        return (chunk if forward else chunks - 1 - chunk) * ranks + rank, group * ranks + batch

    orders = []
    for rank in range(ranks):
        warm_up = min(2 * (ranks - 1 - rank) + (chunks - 1) * ranks, total)
        order = [one("forward", *place(unit, rank, forward=True)) for unit in range(warm_up)]
        for unit in range(total):
            if unit + warm_up < total:
                order.append(one("forward", *place(unit + warm_up, rank, forward=True)))
            order.append(one("backward", *place(unit, rank, forward=False)))
        orders.append(order)
    return orders


def zero_bubble(ranks: int, micro_batches: int) -> Orders:
    """ZB-H1 of Qi et al. 2023 (arXiv 2401.10241), §2.1: as 1F1B, but rank r computes weights' gradients r later."""
    orders = []
    for rank in range(ranks):
        warm_up = ranks - 1 - rank
        order = [one("forward", rank, batch) for batch in range(warm_up)]
        for batch in range(micro_batches):
            if batch + warm_up < micro_batches:
                order.append(one("forward", rank, batch + warm_up))
            order.append(one("input_backward", rank, batch))
            if batch >= rank:
                order.append(one("weight_backward", rank, batch - rank))
        order += [one("weight_backward", rank, batch) for batch in range(micro_batches - rank, micro_batches)]
        orders.append(order)
    return orders


def end_of(ranks: Sequence[RankTime]) -> float:
    return max(rank.end for rank in ranks)


@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 1), (2, 1), (2, 2), (4, 4), (4, 16), (8, 8), (5, 9)])
@pytest.mark.parametrize("order", [gpipe, one_forward_one_backward])
def test_equal_stages_wait_for_the_known_part_of_the_step(order: object, ranks: int, micro_batches: int) -> None:
    """(p - 1) / (m + p - 1) of the step: Huang et al. 2018 (arXiv 1811.06965), §2.3, and as much with 1F1B."""
    assert callable(order)
    found = run(order(ranks, micro_batches), ranks, timed(forward=1, backward=2))
    end = end_of(found)
    assert end == 3 * (micro_batches + ranks - 1)
    for rank in found:
        assert (end - rank.busy) / end == pytest.approx((ranks - 1) / (micro_batches + ranks - 1))


@pytest.mark.parametrize(("ranks", "chunks", "micro_batches"), [(2, 2, 2), (2, 2, 8), (4, 2, 8), (4, 3, 8), (4, 5, 4)])
def test_looped_stages_wait_less_by_their_number(ranks: int, chunks: int, micro_batches: int) -> None:
    """(p - 1) / (v m) of what a rank computes: Narayanan et al. 2021 (arXiv 2104.04473), §2.2."""
    found = run(interleaved(ranks, chunks, micro_batches), ranks * chunks, timed(forward=1, backward=2))
    computes = 3 * chunks * micro_batches
    assert all(rank.busy == computes for rank in found)
    assert (end_of(found) - computes) / computes == pytest.approx((ranks - 1) / (chunks * micro_batches))


@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 4), (4, 8), (8, 16)])
def test_halves_of_backward_wait_a_third(ranks: int, micro_batches: int) -> None:
    """(p - 1) (F + B - W) where 1F1B waits (p - 1) (F + B + W): Qi et al. 2023, table 2. All three are 1 here."""
    halves = timed(forward=1, input_backward=1, weight_backward=1)
    found = run(zero_bubble(ranks, micro_batches), ranks, halves)
    assert end_of(found) == 3 * micro_batches + (ranks - 1)
    whole = run(one_forward_one_backward(ranks, micro_batches), ranks, timed(forward=1, backward=2))
    assert end_of(whole) == 3 * micro_batches + 3 * (ranks - 1)


def test_a_longer_last_stage_by_hand() -> None:
    """gpipe, 2 stages, 2 micro-batches. Stage 0: 1 s and 2 s; stage 1, with the head: 3 s and 5 s.

    Rank 0: 0-1, 1-2 forward; backward when rank 1 has: 12-14, 17-19. Rank 1: 1-4, 4-7, 7-12, 12-17.
    """
    timetable = {(0, kind): each for kind, each in timed(forward=1, backward=2).items()}
    timetable |= {(1, kind): each for kind, each in timed(forward=3, backward=5).items()}
    first, last = lay_out_ranks(gpipe(2, 2), timetable, Stages({0: 0, 1: 1}), 1.0)
    assert (first.starts, first.ends) == ((0, 1, 12, 17), (1, 2, 14, 19))
    assert (last.starts, last.ends) == ((1, 4, 7, 12), (4, 7, 12, 17))
    assert (first.bubble, first.busy, first.end) == (13, 6, 19)
    assert (last.bubble, last.busy, last.end) == (1, 16, 17)


def test_messages_delay_whom_they_reach_too_late() -> None:
    """One micro-batch, 2 stages of 1 s and 2 s, messages of 1/4 s and 1/2 s.

    Rank 0: 0-1 forward. Rank 1 waits 1 s for that and 1/4 s for the message: 1.25-2.25 forward, 2.25-4.25 backward.
    Rank 0 waits until 4.75, of which 1/2 s for the message, and ends at 6.75.
    """
    first, last = run(gpipe(2, 1), 2, timed(forward=1, backward=2), messages=(0.25, 0.5))
    assert (last.starts, last.bubble, last.communication) == ((1.25, 2.25), 1, {"pp": 0.25})
    assert (first.starts, first.bubble, first.communication) == ((0, 4.75), 3.25, {"pp": 0.5})
    assert first.end == 6.75 == first.busy + first.bubble


def test_messages_are_hidden_behind_other_passes() -> None:
    """Rank 1 of gpipe has the first output at 1.5 and never waits again: only that half second is seen."""
    ends = [end_of(run(gpipe(2, 8), 2, timed(forward=1, backward=2), messages=(late, 0))) for late in (0, 0.5)]
    assert ends == [27, 27.5]


def test_a_stage_on_the_same_rank_needs_no_message() -> None:
    """A V of two ranks: forward 0, 1, 2, 3 and back; stages 1 and 2 are on rank 1. Two of three hops take 1 s."""
    order = [
        [one("forward", 0, 0), one("forward", 3, 0), one("backward", 3, 0), one("backward", 0, 0)],
        [one("forward", 1, 0), one("forward", 2, 0), one("backward", 2, 0), one("backward", 1, 0)],
    ]
    first, last = run(order, 4, timed(forward=1, backward=2), v_shaped=True, messages=(1, 1))
    assert first.starts == (0, 5, 6, 14)  # 1 + 1, 2 + 2, + 1; then 8 + 1, 9 to 13, + 1
    assert last.starts == (2, 3, 9, 11)


def test_collectives_of_unshard_run_beside_what_follows_until_they_are_waited_for() -> None:
    """unshard 1 s, and 7 s of gathers from then on; two forward passes of 2 s, beside them at half their speed.

    1-5 the first one. The second would take until 9, but the gathers end at 8, when 3/4 of it are done; the rest takes
    1/2 s: 8.5. What `wait` waits for is there. Without the passes between, it waits 7 s.
    """
    times = timed(forward=2, wait=1)
    times["unshard"] = TimedPass(PassTime(1, memory=1), beside=7, beside_axis="fsdp")
    order = [one("unshard", 0, None), one("forward", 0, 0), one("forward", 0, 1), one("wait", 0, None)]
    (rank,) = run([order], 1, times, share=0.5)
    assert rank.starts == (0, 1, 5, 8.5)
    assert rank.end == 9.5 == rank.busy
    assert (rank.products, rank.memory, rank.communication) == (7.5 + 1, 1, {})
    (rank,) = run([[order[0], order[3]]], 1, times, share=0.5)
    assert (rank.starts, rank.communication) == ((0, 8), {"fsdp": 7})


def test_both_ends_exchange_when_both_are_there() -> None:
    """Rank 0 ends its backward pass at 6, rank 1 its own at 4, and the exchange takes 1 s of both."""
    orders = gpipe(2, 1)
    orders[0].append(one("exchange", 0, None))
    orders[1].append(one("exchange", 1, None))
    first, last = run(orders, 2, timed(forward=1, backward=2, exchange=1))
    assert (first.end, last.end, last.bubble) == (7, 7, 1 + 2)


def test_ranks_that_wait_for_each_other_are_an_error() -> None:
    orders = gpipe(2, 2)
    orders[0].insert(1, orders[0].pop(2))  # backward of micro-batch 0 before forward of 1
    orders[1] = [orders[1][1], orders[1][0], *orders[1][2:]]  # forward of 1 before forward of 0
    with pytest.raises(AssertionError, match=r"deadlock: rank 0 waits in OrderedPass\(kind='backward'.*; rank 1 waits"):
        run(orders, 2, timed(forward=1, backward=2))


def test_passes_that_run_at_the_end_of_a_step_alone() -> None:
    """A reduction takes its time on the rank, and so does its collective."""
    times = timed(forward=1, backward=2)
    times["reduction"] = TimedPass(PassTime(3, memory=1, communication=(("fsdp", 2),)))
    (rank,) = run([[one("forward", 0, 0), one("backward", 0, 0), one("reduction", 0, None)]], 1, times)
    assert (rank.end, rank.communication, rank.bubble) == (6, {"fsdp": 2}, 0)


def test_many_passes_take_little_time() -> None:
    orders = one_forward_one_backward(16, 512)
    begin = time.process_time()
    found = run(orders, 16, timed(forward=1, backward=2))
    assert time.process_time() - begin < 1.0, f"{sum(map(len, orders))} passes"
    assert end_of(found) == 3 * (512 + 15)
