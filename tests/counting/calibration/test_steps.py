"""Measured steps beside their estimates."""

import math
from functools import cache
from typing import Any

import msgspec
import pytest

from counting.analysis import analyze
from counting.calibration.steps import MeasuredStep, calibrate_cluster
from counting.cost.cluster import Calibration, Cluster
from counting.cost.hardware import find_gpu
from counting.setup import Setup
from tests.shrunken import LLAMA
from torch_models import read_spec
from torch_models.errors import UserError
from torch_models.layout import Layout

pytestmark = pytest.mark.usefixtures("equal_steps_once")

SPEC = read_spec(LLAMA)
CLUSTER = Cluster(gpu=find_gpu("H100"))
SETUPS = [Setup(sequence_length=32), Setup(sequence_length=32, micro_batches=2), Setup(sequence_length=64)]


@cache
def estimated(setup: Setup, cluster: Cluster = CLUSTER) -> Any:
    times = analyze(SPEC, setup, cluster=cluster).step_time
    assert times is not None
    return times[0]


def steps(*factors: float) -> list[MeasuredStep]:
    """Steps that take so many times their estimates."""
    return [
        MeasuredStep(
            where=f"rows.csv: row {number}",
            model=SPEC,
            setup=setup,
            layout=None,
            seconds=factor * estimated(setup).seconds,
        )
        for number, (setup, factor) in enumerate(zip(SETUPS, factors, strict=True), start=1)
    ]


def test_steps_are_scaled_by_their_estimates_on_the_cluster_without_its_own_scale() -> None:
    scaled = msgspec.structs.replace(CLUSTER, calibration=Calibration(scale=7.0, low=0.5, high=2.0, rows=3))
    shown: list[str] = []
    found = calibrate_cluster(steps(1.1, 1.2, 1.5), scaled, shown.append)
    assert found.gpu == "H100"
    assert found.calibration.scale == pytest.approx((1.1 * 1.2 * 1.5) ** (1 / 3))
    assert found.calibration.low == pytest.approx(1.1 / math.sqrt(1.2 * 1.5))
    assert found.calibration.high == pytest.approx(1.5 / math.sqrt(1.1 * 1.2))
    assert [row.seconds.estimated_seconds for row in found.rows] == [estimated(setup).seconds for setup in SETUPS]
    assert [row.bound_seconds for row in found.rows] == [estimated(setup).bound_seconds for setup in SETUPS]
    assert [row.gpus for row in found.rows] == [1, 1, 1]
    assert found.median_error == pytest.approx(math.sqrt(1.2 * 1.5) / 1.1 - 1), "of 7, 22 and 23 %"
    assert len(shown) == 3


def test_a_calibrated_cluster_predicts_what_was_fitted() -> None:
    """Every row off by 1.5: predicted is what was measured, and the band is nothing."""
    found = calibrate_cluster(steps(1.5, 1.5, 1.5), CLUSTER)
    time = estimated(SETUPS[1], msgspec.structs.replace(CLUSTER, calibration=found.calibration))
    assert time.basis == "calibrated"
    assert time.seconds == pytest.approx(1.5 * estimated(SETUPS[1]).seconds)
    assert (time.low_seconds, time.high_seconds) == pytest.approx((time.seconds, time.seconds))


def test_impossible_steps_are_named_with_their_bounds() -> None:
    rows = steps(1.0, 1.0, 1.0)
    rows[0] = msgspec.structs.replace(rows[0], seconds=1e-9)
    rows[2] = msgspec.structs.replace(rows[2], seconds=2e-9)
    with pytest.raises(UserError) as error:
        calibrate_cluster(rows, CLUSTER)
    first, third = (f"{estimated(SETUPS[index]).bound_seconds:.4g} s" for index in (0, 2))
    assert str(error.value) == (
        f"rows.csv: row 1: seconds = 1e-09: is faster than the bound of this step, {first}; rows.csv: row 3: seconds = "
        f"2e-09: is faster than the bound of this step, {third}; correct or leave out what cannot have been measured"
    )


def test_an_error_of_a_step_names_its_row() -> None:
    rows = steps(1.0, 1.0, 1.0)
    rows[1] = msgspec.structs.replace(rows[1], layout=Layout(tp=3))
    with pytest.raises(UserError, match=r"^rows\.csv: row 2: tp = 3: "):
        calibrate_cluster(rows, CLUSTER)


def test_too_few_steps_are_refused_before_any_is_estimated() -> None:
    with pytest.raises(UserError, match="2 measured steps are too few"):
        calibrate_cluster(steps(1.0, 1.0, 1.0)[:2], CLUSTER, show=lambda text: pytest.fail(text))
