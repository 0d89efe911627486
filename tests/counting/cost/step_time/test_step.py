"""The time of whole steps, by hand on a machine of round numbers, and the limits that any step keeps to."""

import random
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from msgspec import structs

from counting.cost.cluster import Calibration, Cluster
from counting.cost.rates import Link, ProductRates
from counting.cost.step_time import step as of_steps
from counting.cost.step_time import step_time
from counting.cost.step_time.band import Errors
from counting.ranks.profile import Traffic
from counting.setup import Setup, resolve
from counting.step.time import StepTime
from counting.timing import step_times
from counting.work import OrderedPass, PassWork, StepWork, StretchWork
from tests.counting.cost.hand_made import (
    GIGA,
    ROUND,
    SETUP,
    TERA,
    cluster,
    copies,
    gathered,
    pipeline_step,
    sharded_step,
    without_traffic,
)
from tests.counting.cost.step_time.clusters import made_cluster
from tests.shrunken import DEEPSEEK_V3
from torch_models.errors import ArgumentError
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout

FSDP_2 = Layout(num_gpus=2, dp=1, fsdp=2, gpus_per_node=8)
CALL = 8.4e-6  # seconds that each collective takes more than by its bytes (counting/cost/step_time/machine.py)


def time_of(
    work: StepWork, layout: Layout | None = FSDP_2, on: Cluster | None = None, tokens: int = 1000, **more: Any
) -> StepTime:
    setup = structs.replace(SETUP, sequence_length=tokens, micro_batches=work.micro_batches)
    given = {"model_flops_per_token": Fraction(6 * GIGA), "hardware_flops": 20 * TERA} | more
    return step_time(work, setup, layout, on or cluster(), **given)


def unhindered() -> Cluster:
    """Products do not lose speed beside collectives."""
    return cluster(structs.replace(ROUND, beside_collectives_share=1.0))


def infinite_links() -> Cluster:
    """Links without limits."""
    link = Link(gb_per_s=1e6, latency_seconds=0)
    return cluster(structs.replace(ROUND, node_link=link, network_link=link))


def test_a_step_of_two_layers_by_hand() -> None:
    """The table of tests/counting/cost/step_time/test_streams.py, and 2 s of update: 45 s, 31 + 2 of them ops.

    A step has 2 x 1,000 tokens, 1,000 a GPU. Model FLOPs: 6e9 x 1,000 / 45 s = 1.33e11 a second of 4e12 at the peak.
    """
    time = time_of(sharded_step(), on=unhindered())
    assert time.seconds == pytest.approx(45, abs=12 * CALL)
    breakdown = time.breakdown
    assert (breakdown.products, breakdown.attention, breakdown.bubble) == (pytest.approx(29), 0, 0)
    assert (breakdown.memory_bound, breakdown.optimizer) == (pytest.approx(2), pytest.approx(2))
    assert breakdown.communication == {"fsdp": pytest.approx(12, abs=12 * CALL)}
    assert time.tokens_per_second_per_gpu == pytest.approx(1000 / 45, rel=1e-5)
    assert time.mfu == pytest.approx(6 / 45 / 4, rel=1e-5)
    assert time.hfu == pytest.approx(10 / 45 / 4, rel=1e-5)


def test_what_runs_as_fast_as_products_for_want_of_rates() -> None:
    """Nothing is named that the step does not have: of hand-made steps, none has attention or experts."""
    assert time_of(sharded_step()).as_products == ()
    spec = spec_from_fields(DEEPSEEK_V3, "small")
    setup = resolve(Setup(sequence_length=8), spec)
    for rates, named in (
        ({"attention": (), "grouped": ()}, ("attention", "experts")),
        ({"grouped": ()}, ("experts",)),
        ({"attention": ()}, ("attention",)),
        ({}, ()),
    ):
        (time,) = step_times(spec, setup, None, [made_cluster(**rates)], forward_flops=10**6, forward_only=0)
        assert time.as_products == named


def test_a_rank_is_compared_with_the_peak_of_its_device() -> None:
    """On a board of two devices, each with half of its rates, all takes twice as long, of half of the peak."""
    one = infinite_links()
    board = structs.replace(one, gpu=structs.replace(one.gpu, devices=2, driver_memory_bytes=2**35))
    on_one, on_board = time_of(sharded_step(), on=one), time_of(sharded_step(), on=board)
    assert on_board.seconds == pytest.approx(2 * on_one.seconds, rel=1e-4)
    assert on_board.bound_seconds == pytest.approx(2 * on_one.bound_seconds, rel=1e-4)
    for field in ("mfu", "hfu", "bound_mfu"):
        assert getattr(on_board, field) == pytest.approx(getattr(on_one, field), rel=1e-4)


def test_the_band_of_an_estimate_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates were 20 % below to 25 % above what was measured: 45 s are 45 / 1.25 = 36 to 45 / 0.8 = 56.25."""
    monkeypatch.setattr(of_steps, "errors_of", lambda _: Errors(low=-0.2, high=0.25, rows=9))
    time = time_of(sharded_step(), on=unhindered())
    assert (time.low_seconds, time.high_seconds) == pytest.approx((36, 56.25), rel=1e-5)


def test_its_bound_by_hand() -> None:
    """At best products take 29 / 2 s, copies (2 + 2) / 2: 16.5 s. A rank receives 2 + 3 x 2 + 1 + 3 + 3 x 2 = 18 GB of
    parameters, and meanwhile sends 6 x 2 + 2 = 14 GB of gradients: 9 s at 2 GB/s. At 1 GB/s that is longer: 18 s.
    """
    time = time_of(sharded_step())
    assert time.bound_seconds == pytest.approx(16.5, rel=1e-12)
    assert time.bound_mfu == pytest.approx(6 / 16.5 / 4)
    slower = structs.replace(ROUND, node_link=Link(gb_per_s=1, achieved_gb_per_s=1, latency_seconds=0))
    assert time_of(sharded_step(), on=cluster(slower)).bound_seconds == pytest.approx(18, rel=1e-12)


def test_several_micro_batches_by_hand() -> None:
    """Each of 10 takes 43 s, of which three are in the order; the update 2 s. At best 10 x 15.5 s and 1 s."""
    time = time_of(sharded_step(micro_batches=10), on=unhindered())
    assert time.seconds == pytest.approx(432, abs=120 * CALL)
    assert time.breakdown.products == pytest.approx(290)
    assert time.breakdown.communication == {"fsdp": pytest.approx(120, abs=120 * CALL)}
    assert time.bound_seconds == pytest.approx(156)


def test_products_beside_collectives_lose_speed() -> None:
    """By at most their share of one half, and what they lose is theirs."""
    alone, beside = time_of(sharded_step(), on=unhindered()), time_of(sharded_step())
    assert alone.breakdown.products < beside.breakdown.products < 2 * alone.breakdown.products
    assert beside.breakdown.memory_bound == alone.breakdown.memory_bound
    assert beside.bound_seconds == alone.bound_seconds


def test_without_limits_of_links_a_step_takes_its_ops() -> None:
    """31 s and the update, at 10^6 GB/s and no latency but that of 12 calls."""
    time = time_of(sharded_step(), on=infinite_links())
    assert time.seconds == pytest.approx(33, abs=1e-3)


@pytest.mark.parametrize(("stages", "micro_batches"), [(2, 2), (4, 4), (4, 12)])
def test_a_pipeline_waits_for_the_known_part(stages: int, micro_batches: int) -> None:
    """(p - 1) / (m + p - 1) of the time of the passes, and nothing while ranks update."""
    layout = Layout(num_gpus=stages, dp=1, pp=stages)
    time = time_of(pipeline_step(stages, micro_batches), layout)
    assert time.seconds == pytest.approx(3 * (micro_batches + stages - 1) + 2)
    assert time.breakdown.bubble == pytest.approx(3 * (stages - 1))
    assert time.breakdown.optimizer == pytest.approx(2)
    assert time.bound_seconds == pytest.approx(time.seconds / 2)


@pytest.mark.parametrize(("clips", "seconds"), [(False, 12), (True, 14)])
def test_stages_that_clip_wait_for_the_norms_of_all(clips: bool, seconds: float) -> None:
    """The passes of two stages end after 9 s and 7 s, and their updates take 2 s and 5 s."""
    work, layout = pipeline_step(2, 2), Layout(num_gpus=2, dp=1, pp=2)
    norm = {"optimizer all_reduce pp": Traffic(calls=1, bytes_in=4, bytes_out=4)} if clips else {}
    ranks = tuple(
        structs.replace(rank, optimizer=StretchWork(ops=(copies(update),), traffic=norm))
        for rank, update in zip(work.ranks, (2, 5), strict=True)
    )
    time = time_of(structs.replace(work, ranks=ranks), layout)
    assert time.seconds == pytest.approx(seconds, abs=1e-3)
    assert time.bound_seconds <= time.seconds / 2


def test_a_pipeline_whose_order_is_extended_takes_as_long_as_the_whole_one() -> None:
    layout = Layout(num_gpus=4, dp=1, pp=4)
    whole, short = pipeline_step(4, 40), structs.replace(pipeline_step(4, 8), micro_batches=40)
    of_whole, of_short = time_of(whole, layout), time_of(short, layout)
    assert of_short.seconds == pytest.approx(of_whole.seconds, rel=1e-12)
    # Without the bubble: 40 x 3 s and the update, at twice the speed.
    assert of_short.bound_seconds == pytest.approx(122 / 2)
    assert of_short.bound_seconds <= of_whole.bound_seconds
    assert of_short.breakdown.products == pytest.approx(of_whole.breakdown.products)
    assert of_short.breakdown.bubble == pytest.approx(of_whole.breakdown.bubble)
    assert any("8 micro-batches are laid out" in sentence for sentence in of_short.assumptions)


def test_messages_between_stages_are_exposed_while_nothing_else_runs() -> None:
    """2 stages and 1 micro-batch, 1 s a message: 1 + 1 + 1 + 2 + 1 + 2 s, and the update."""
    layout = Layout(num_gpus=2, dp=1, pp=2)
    time = time_of(pipeline_step(2, 1, message=GIGA), layout)
    assert time.seconds == pytest.approx(10, abs=1e-3)
    assert time.bound_seconds == pytest.approx((6 + 2) / 2)


def test_the_bound_has_gathers_beside_other_passes_apart() -> None:
    """40 GB of `unshard` and 30 of a forward pass at 2 GB/s: 20 s and 15 s, which an estimate has beside each other."""
    work = pipeline_step(2, 1, traffic=gathered(30))
    rank = work.ranks[0]
    passes = rank.stages[0].passes | {"unshard": PassWork(layers=(StretchWork(traffic=gathered(40)),))}
    stage = structs.replace(rank.stages[0], passes=passes)
    order = (OrderedPass(kind="unshard", key="unshard", stage=0), *rank.order)
    work = structs.replace(work, ranks=(structs.replace(rank, stages=(stage,), order=order), work.ranks[1]))
    time = time_of(work, Layout(num_gpus=4, dp=1, fsdp=2, pp=2))
    assert time.bound_seconds == pytest.approx(20)


def test_collectives_in_place_are_exposed() -> None:
    """An all-gather over two ranks of tp in each of 4 forward passes: 3 s each."""
    layout = Layout(num_gpus=4, dp=1, tp=2, pp=2)
    traffic = {"forward all_gather tp": Traffic(calls=1, bytes_in=3 * GIGA, bytes_out=6 * GIGA)}
    time = time_of(pipeline_step(2, 4, traffic=traffic), layout)
    assert time.breakdown.communication == {"tp": pytest.approx(12, abs=1e-3)}


def random_step(numbers: random.Random) -> StepWork:
    scale = numbers.choice((0.125, 0.5, 1, 3))
    return sharded_step(micro_batches=numbers.randrange(1, 6), scale=scale)


def random_cluster(numbers: random.Random, slower_links: float = 1) -> Cluster:
    best, printed = 1 + numbers.random() * 3, 0.5 + numbers.random() * 8
    link = Link(
        gb_per_s=printed / slower_links,
        achieved_gb_per_s=printed * numbers.choice((0.4, 0.9, 1)) / slower_links,
        latency_seconds=numbers.random() * slower_links * 0.1,
    )
    rates = structs.replace(
        ROUND,
        bf16=ProductRates(
            best_tflop_per_s=best, sustained_tflop_per_s=best * numbers.choice((0.5, 0.8, 1)), source="random"
        ),
        memory_bandwidth_share=numbers.choice((0.6, 1)),
        launch_seconds=numbers.choice((0, 1e-3)),
        beside_collectives_share=numbers.choice((0.43, 0.8, 1)),
        node_link=link,
    )
    return cluster(rates)


@pytest.mark.parametrize("seed", range(30))
def test_the_bound_is_never_above_the_estimate_and_the_parts_sum_to_the_step(seed: int) -> None:
    numbers = random.Random(seed)
    time = time_of(random_step(numbers), on=random_cluster(numbers))
    assert 0 < time.bound_seconds <= time.low_seconds <= time.seconds <= time.high_seconds
    assert time.mfu <= time.bound_mfu
    assert time.breakdown.total == time.seconds
    assert min(time.breakdown.communication.values(), default=0) >= 0


@pytest.mark.parametrize("seed", range(30))
def test_slower_links_make_no_step_faster(seed: int) -> None:
    found = []
    for slower in (1, 1.2, 4):
        numbers = random.Random(seed)
        found.append(time_of(random_step(numbers), on=random_cluster(numbers, slower)))
    for earlier, later in pairwise(found):
        assert later.seconds >= earlier.seconds
        assert later.bound_seconds >= earlier.bound_seconds


@pytest.mark.parametrize("seed", range(30))
def test_of_the_bound_a_larger_micro_batch_is_never_slower_a_token(seed: int) -> None:
    """At the same number of micro-batches: ops grow with the tokens, collectives of parameters do not."""
    numbers = random.Random(seed)
    on, micro_batches = random_cluster(numbers), numbers.randrange(1, 5)
    a_token = [
        time_of(sharded_step(micro_batches, scale), on=on).bound_seconds / scale for scale in (0.25, 0.5, 1, 2, 8)
    ]
    assert a_token == sorted(a_token, reverse=True)


def test_the_bound_takes_fused_ops_and_the_estimate_does_not() -> None:
    """The embedding's 1 s of copies, 0.5 at best, are fused into half as many bytes."""
    work = sharded_step()
    (rank,) = work.ranks
    stage = rank.stages[0]
    forward = stage.passes["forward"]
    (copied,) = forward.before.ops
    fused = (structs.replace(copied, bytes_read=copied.bytes_read // 2),)
    forward = structs.replace(forward, before=structs.replace(forward.before, fused_ops=fused))
    stage = structs.replace(stage, passes=stage.passes | {"forward": forward})
    of_fused = time_of(structs.replace(work, ranks=(structs.replace(rank, stages=(stage,)),)))
    assert of_fused.seconds == time_of(work).seconds
    assert of_fused.bound_seconds == pytest.approx(16.5 - 0.25)


def test_a_calibrated_step_is_scaled_and_its_band_is_that_of_the_rows() -> None:
    """45 s x 1.2 = 54 s; the rows left out were 0.95 to 1.04 of what the others predict."""
    calibration = Calibration(scale=1.2, low=0.95, high=1.04, rows=5)
    rates = structs.replace(ROUND, beside_collectives_share=1.0)
    time = time_of(sharded_step(), on=cluster(rates, calibration))
    assert time.basis == "calibrated"
    assert time.seconds == pytest.approx(54, rel=1e-5) == time.breakdown.total
    assert (time.low_seconds, time.high_seconds) == pytest.approx((54 * 0.95, 54 * 1.04), rel=1e-5)
    assert time.bound_seconds == pytest.approx(16.5)
    assert "Scaled by 1.2, fitted to 5 measured steps." in time.assumptions


def test_a_calibrated_step_is_not_below_the_bound() -> None:
    calibration = Calibration(scale=0.1, low=0.9, high=1.1, rows=3)
    time = time_of(sharded_step(), on=cluster(ROUND, calibration))
    assert time.seconds == pytest.approx(time.bound_seconds)
    assert time.low_seconds == time.bound_seconds <= time.high_seconds


def test_an_estimate_says_what_it_rests_on() -> None:
    time = time_of(sharded_step())
    assert (time.gpu, time.basis, time.rates_of) == ("round", "estimate", "round")
    assert any(sentence.startswith("Not modelled: data loading, checkpoints") for sentence in time.assumptions)
    assert all(sentence.endswith(".") for sentence in time.assumptions)


def test_links_of_unknown_speed_are_asked_for() -> None:
    unknown = structs.replace(ROUND, network_link=None)
    assert time_of(sharded_step(), on=cluster(unknown)).seconds > 0  # both ranks are in one node
    layout = Layout(num_gpus=16, dp=1, fsdp=16)
    with pytest.raises(ArgumentError, match="network_link"):
        time_of(sharded_step(), layout, cluster(unknown))


def test_one_device_needs_no_links() -> None:
    rates = structs.replace(ROUND, node_link=None, network_link=None)
    time = time_of(without_traffic(sharded_step()), None, cluster(rates))
    assert time.seconds == pytest.approx(33)
    assert time.breakdown.communication == {}
