"""Curves of a bill: they go through its outcomes, and are what other runs at other utilisations and prices would be."""

from functools import cache

import msgspec
import pytest

from counting.analysis import Analysis, analyze
from counting.cost.bill_curves import bill_curves
from counting.cost.run import RunPlan, TrainingRun, plan_run
from counting.setup import Setup


@cache
def analysis() -> Analysis:
    return analyze("llama_7b", Setup(sequence_length=2048), step=False)


def run(**plan: object) -> TrainingRun:
    return plan_run(analysis(), RunPlan(**({"tokens": 10**12, "gpus": ("A100",), "num_gpus": 1024} | plan)))


def test_every_point_is_a_run_at_that_utilisation() -> None:
    (curves,) = bill_curves([run()])
    assert curves.days is not None
    for mfu, hours, cost, days in zip(curves.mfus, curves.gpu_hours, curves.costs_usd, curves.days, strict=True):
        (outcome,) = run(mfus=(mfu,)).gpus[0].outcomes
        assert (outcome.gpu_hours, outcome.cost_usd, outcome.days) == pytest.approx((hours, cost, days), rel=1e-12)
    assert (curves.mfus[0], curves.mfus[-1]) == (0.2, 0.7)


def test_costs_at_prices_are_those_of_runs_at_these_prices() -> None:
    (curves,) = bill_curves([run()])
    price, cost = curves.prices_usd_per_hour[-1], curves.costs_at_prices_usd[-1]
    (outcome,) = run(mfus=(curves.priced_at,), prices_usd_per_hour={"A100": price}).gpus[0].outcomes
    assert (curves.priced_at, outcome.cost_usd) == (0.4, pytest.approx(cost, rel=1e-12))
    assert price == 2 * run().gpus[0].price_usd_per_hour
    assert (curves.prices_usd_per_hour[0], curves.costs_at_prices_usd[0]) == (0, 0)


def test_by_hand() -> None:
    """3 M GPU-hours at 40 % MFU are 2.4 M at 50 %; at 2 dollars 4.8 M dollars, and 100 days on 1,000 GPUs."""
    one = run(mfus=(0.4,))
    outcome = msgspec.structs.replace(one.gpus[0].outcomes[0], gpu_hours=3e6)
    gpu = msgspec.structs.replace(one.gpus[0], outcomes=(outcome,), price_usd_per_hour=2.0, num_gpus=1000)
    (curves,) = bill_curves([msgspec.structs.replace(one, gpus=(gpu,))])
    (at,) = [place for place, mfu in enumerate(curves.mfus) if mfu == pytest.approx(0.5)]
    assert curves.days is not None
    assert (curves.gpu_hours[at], curves.costs_usd[at], curves.days[at]) == pytest.approx((2.4e6, 4.8e6, 100))


def test_range_includes_every_outcome() -> None:
    (curves,) = bill_curves([run(mfus=(0.1, 0.95))])
    assert curves.mfus[0] < 0.1
    assert curves.mfus[-1] == 1.0
    assert bill_curves([run(num_gpus=None)])[0].days is None
