"""Tables of one model: rows sum to their totals, and nothing is cut."""

import re

import pytest

from counting.analysis import Analysis, analyze
from counting.cost.budget import plan_budget
from counting.report.details.budget import budget_parts
from counting.report.model import analysis_parts
from counting.report.model.fits import fits_table
from counting.report.printing import print_parts
from counting.setup import Setup
from counting.step.fit import Fit, Remedy
from tests.shrunken import DEEPSEEK_V3, GLM_MOE_DSA
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture(scope="module")
def deepseek() -> Analysis:
    return analyze("deepseek_v3_config.json", Setup(sequence_length=4096))


def columns_of(text: str, title: str) -> list[list[str]]:
    """The rows of the table under `title`, as cells."""
    table = text[text.index(title) :]
    rows = []
    for line in table.splitlines()[1:]:
        if line.startswith("└"):
            break
        if line.startswith(("│", "┃")):
            rows.append([cell.strip() for cell in re.split("[│┃]", line)[1:-1]])
    return rows


def integer(cell: str) -> int:
    return int(cell.replace(",", "") or 0)


@pytest.mark.parametrize(
    ("title", "total"),
    [("Parameters", "total"), ("Forward FLOPs of one sequence", "total, full attention"), ("Peak memory", "peak")],
)
def test_rows_sum_to_totals(title: str, total: str, deepseek: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    print_parts(analysis_parts(deepseek))
    rows = columns_of(capsys.readouterr().out, title)
    labels = [row[0] for row in rows]
    end = labels.index(total)
    assert end > 3
    numeric_columns = [index for index in range(1, len(rows[0])) if rows[0][index] != "share"]
    assert len(numeric_columns) >= 2
    for column in numeric_columns:
        assert sum(integer(row[column]) for row in rows[1:end]) == integer(rows[end][column])


def test_layers_times_count_are_the_model(deepseek: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    print_parts(analysis_parts(deepseek))
    rows = columns_of(capsys.readouterr().out, "Parameters")
    header, attention = rows[0], next(row for row in rows if row[0] == "attention")
    assert header[1:4] == ["dense layer × 3", "moe layer × 58", "model"]
    assert 3 * integer(attention[1]) + 58 * integer(attention[2]) == integer(attention[3])


def test_conventions_are_printed(deepseek: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    print_parts(analysis_parts(deepseek))
    out = " ".join(capsys.readouterr().out.split())
    assert all(note in out for note in deepseek.notes)
    assert "batch 1, sequence length 4,096 (given), fused kernels." in out
    assert "The step was measured in bfloat16." in out


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_nothing_is_cut(
    width: int, deepseek: Analysis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_parts(analysis_parts(deepseek))
    print_parts(budget_parts(plan_budget(1e9, gpus=["H100", "B200"])))
    out = capsys.readouterr().out
    for line in out.splitlines():
        assert not re.search(r"…(?! (with|without|of|for)\b)", line)
        assert line == line.rstrip()
        assert len(line) <= max(width, 80)
    for part in (deepseek.parameters.total, deepseek.forward_flops, deepseek.parameters.by_component["attention"]):
        assert f"{part:,}" in out


def test_a_name_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    analysis = analyze(spec_from_fields(DEEPSEEK_V3, "[red]odd[/blue]"), Setup(sequence_length=16), step=False)
    print_parts(analysis_parts(analysis))
    assert "[red]odd[/blue]" in capsys.readouterr().out


def test_windows_have_their_own_rows(capsys: pytest.CaptureFixture[str]) -> None:
    print_parts(analysis_parts(analyze("mistral_7b", Setup(sequence_length=8192), step=False)))
    labels = [row[0] for row in columns_of(capsys.readouterr().out, "Forward FLOPs of one sequence")]
    assert labels[-3:] == ["total, attention within windows", "total, causal within windows", "total, full attention"]


def test_a_narrow_table_comes_in_parts(
    deepseek: Analysis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each part has the names; a row that says nothing in a part is left out there, and stands in the other."""
    monkeypatch.setenv("COLUMNS", "80")
    print_parts(analysis_parts(deepseek))
    out = capsys.readouterr().out
    layers, model = columns_of(out, "Parameters"), columns_of(out, "Parameters, continued")
    assert layers[0] == ["component", "dense layer × 3", "moe layer × 58"]
    assert model[0] == ["component", "model", "share"]
    assert "lm_head" not in [row[0] for row in layers]
    assert ["lm_head", f"{deepseek.parameters.by_component['lm_head']:,}", "0.14 %"] in model


def test_rows_of_zeros_are_left_out(deepseek: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    print_parts(analysis_parts(deepseek))
    out = capsys.readouterr().out
    for title in ("Parameters", "Forward FLOPs", "Peak memory of one layer", "Memory of the training step"):
        for row in columns_of(out, title)[1:]:
            assert set(row[1:]) - {"", "0", "0.00 %"}, (title, row)
    assert "positional_embedding" not in out


def test_where_a_step_fits(capsys: pytest.CaptureFixture[str]) -> None:
    """What is needed, what there is, and of what does not fit the cheapest remedy."""
    analysis = analyze(spec_from_fields(DEEPSEEK_V3, "small"), Setup(sequence_length=16))
    assert analysis.memory is not None
    peak = analysis.memory.peak_bytes
    remedy = Remedy(recompute="full", loss_chunk=7, needed_bytes=900)
    fits = (
        Fit(
            gpu="large",
            fits=True,
            kernels="fused",
            allocated_bytes=peak,
            context_bytes=10,
            needed_bytes=peak + 10,
            capacity_bytes=peak + 30,
            basis="allocated",
            remedies=(),
        ),
        Fit(
            gpu="small",
            fits=False,
            kernels="eager",
            allocated_bytes=peak,
            context_bytes=0,
            needed_bytes=peak,
            capacity_bytes=1000,
            basis="allocated",
            remedies=(remedy,),
        ),
    )
    print_parts(analysis_parts(analysis, fits))
    rows = columns_of(capsys.readouterr().out, "On one device of each GPU")
    assert rows[1:] == [
        ["large", "yes", f"{peak:,}", f"{peak + 10:,}", f"{peak + 30:,}", "20", "", ""],
        [
            "small",
            "no (eager)",
            f"{peak:,}",
            f"{peak:,}",
            "1,000",
            f"{1000 - peak:,}",
            "recompute full, loss chunk 7",
            "900",
        ],
    ]


def test_model_flops_of_an_indexer_are_said(deepseek: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    """In the step, and in that of a rank."""
    layout = Layout(num_gpus=2, fsdp=2, gpus_per_node=2)
    sparse = analyze(spec_from_fields(GLM_MOE_DSA, "sparse"), Setup(sequence_length=16), layout=layout)
    print_parts(analysis_parts(sparse))
    out = capsys.readouterr().out
    for title in ("One training step over", "FLOPs of a rank in one step"):
        assert "model FLOPs, 3 × forward, an indexer's once" in [row[0] for row in columns_of(out, title)]
    print_parts(analysis_parts(deepseek))
    assert "an indexer" not in capsys.readouterr().out


def test_what_finds_a_remedy_is_that_which_proves_the_step() -> None:
    setup = Setup()
    by_formula, measured = (
        fits_table((), setup, proof).caption or "" for proof in ("measured = formula", "measured, no formula")
    )
    assert "by formula and simulation" in by_formula
    assert "Eager: by simulation" in by_formula
    assert "measured as the step is" in measured
    assert "simulation" not in measured
