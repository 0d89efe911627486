"""Every number of a result is a row, with its unit, and no row has another number."""

from collections import Counter

import pytest
from msgspec.structs import replace

from counting.analysis import Analysis, analyze
from counting.cost.budget import BudgetPlan
from counting.cost.cluster import Cluster
from counting.cost.fits import fits_on
from counting.cost.hardware import find_gpu
from counting.ranks.result import RankAnalysis
from counting.reconcile import Agreement
from counting.records import Tidy, TidyRow
from counting.records.places import WITHOUT_ROWS
from counting.setup import Setup
from counting.step.time import StepTime
from tests.counting.records.made_up import kinds_of_results, made_up, numbers_of
from tests.shrunken import DEEPSEEK_V3

KINDS = kinds_of_results()


LEFT_OUT = tuple(sorted({field for _, field in WITHOUT_ROWS}))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_number_of_the_document_is_a_row(kind: type[Tidy]) -> None:
    result = made_up(kind)
    rows = result.to_records()
    assert sorted(row.value for row in rows) == numbers_of(result, without=LEFT_OUT)
    names = Counter((row.scope, row.component, row.quantity) for row in rows)
    assert [name for name, times in names.items() if times > 1] == [], "a number is named twice"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not Agreement], ids=lambda kind: kind.__name__)
def test_every_number_has_a_unit(kind: type[Tidy]) -> None:
    assert {row.quantity for row in made_up(kind).to_records() if not row.unit} == set()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_counted_by_a_convention_says_so(kind: type[Tidy]) -> None:
    governed = {"FLOP", "FLOP/token", "parameter", "byte", "GPU-hour", "USD", "nat/token"}
    given = {"budget_usd", "published_gpu_hours"}
    silent = {row.quantity for row in made_up(kind).to_records() if row.unit in governed and not row.convention}
    assert silent - given == set()


def test_an_interval_is_of_the_quantity_of_its_struct() -> None:
    budget = made_up(BudgetPlan)
    rows = budget.to_records()
    constant = f"budget / {budget.law.name}"
    assert [row.component for row in rows if row[:1] + row[2:3] == (constant, "irreducible_loss")] == [
        "value",
        "low",
        "high",
    ]
    assert row_of(rows, "budget / intervals", "low", "tokens").value == budget.intervals.tokens.low


def test_the_classes_that_have_rows() -> None:
    """A name in this list that goes, or a result that is not in it, is noticed."""
    assert {"Analysis", "StepTime", "TrainingRun", "BudgetPlan", "BudgetOnModel", "Design", "Comparison"} <= {
        kind.__name__ for kind in KINDS
    }
    assert {"Fit", "ExaminedRun", "ExaminedMemory", "Throughput", "Claim", "CalibratedCluster", "FoundMachine"} <= {
        kind.__name__ for kind in KINDS
    }


def row_of(rows: list[TidyRow], scope: str, component: str, quantity: str) -> TidyRow:
    (row,) = (row for row in rows if row[:3] == (scope, component, quantity))
    return row


@pytest.fixture(scope="module")
def measured() -> Analysis:
    cluster = Cluster(gpu=find_gpu("H100"))
    analysis = analyze(DEEPSEEK_V3, Setup(sequence_length=16, micro_batches=2), cluster=cluster)
    return replace(analysis, fits=fits_on(analysis, [find_gpu("T4")]))


def test_rows_of_a_model_are_its_numbers(measured: Analysis) -> None:
    rows = measured.to_records()
    assert sorted(row.value for row in rows) == numbers_of(measured, without=LEFT_OUT)
    assert measured.step_time is not None
    assert measured.memory is not None
    time = measured.step_time[0]
    for scope, component, quantity, value, unit in (
        ("config", "total", "parameters", measured.parameters.total, "parameter"),
        ("config", "attention", "parameters", measured.parameters.by_component["attention"], "parameter"),
        ("config", "", "mtp_parameters", measured.parameters.mtp, "parameter"),
        ("config / moe layer", "total", "forward_flops", measured.layers[1].forward_flops, "FLOP"),
        ("config / moe layer", "", "layers", 3, "layer"),
        ("config / step", "masters", "state_bytes", measured.memory.states.masters, "byte"),
        ("config / step / optimiser step", "gradients", "peak_bytes", measured.memory.phases[-1].gradients, "byte"),
        ("config / step on H100", "total", "seconds", time.seconds, "second"),
        ("config / step on H100", "products", "seconds", time.breakdown.products, "second"),
        ("config / fit on T4", "", "fits", 1, "1 = yes"),
        ("config / setup", "", "sequence_length", 16, "token"),
    ):
        row = row_of(rows, scope, component, quantity)
        assert (row.value, row.unit) == (value, unit)


def test_rows_of_ranks_name_what_they_send_and_when() -> None:
    rank, time = made_up(RankAnalysis), made_up(StepTime)
    (sent, _), scope = rank.collectives, f"rank {rank.first_rank}"
    assert row_of(rank.to_records(), scope, "", "ranks").value == rank.count
    assert (
        row_of(rank.to_records(), f"{scope} / {sent.phase}, {sent.op}, {sent.axis} (1)", "", "bytes_in").value
        == sent.bytes_in
    )
    assert row_of(rank.to_records(), scope, "total", "peak_bytes").value == rank.memory.peak_bytes
    ((axis, seconds),) = time.breakdown.communication.items()
    assert row_of(time.to_records(), f"step on {time.gpu}", f"communication, {axis}", "seconds").value == seconds


def test_components_sum_to_the_total(measured: Analysis) -> None:
    rows = measured.to_records()
    whole = {(row.scope, row.quantity): row.value for row in rows if row.component == "total"}
    parts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if row.component not in ("", "total"):
            parts[row.scope, row.quantity] += row.value
    assert len(whole) == 21
    for place in whole.keys() - {("config / step", "peak_bytes")}:  # the parts are those of each phase
        assert parts[place] == pytest.approx(whole[place], rel=1e-12)


def test_witnesses_are_rows_of_the_agreement(measured: Analysis) -> None:
    rows = measured.agreement.to_records()
    assert [row.value for row in rows] == [
        value for check in measured.agreement.checks for value in check.values.values()
    ]
    assert {row.unit for row in rows if not row.unit} == set()
    assert row_of(rows, "dense layer / trace", "attention", "forward_flops").value == 688128
