"""Tables of one model: rows sum to their totals, and nothing is cut."""

import re

import pytest

from counting.analysis import Analysis, analyze
from counting.cost.budget import plan_budget
from counting.report.budget import print_budget
from counting.report.model import print_analysis
from counting.setup import Setup
from tests.shrunken import DEEPSEEK_V3
from torch_models.fields.config import spec_from_fields


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
    print_analysis(deepseek)
    rows = columns_of(capsys.readouterr().out, title)
    labels = [row[0] for row in rows]
    end = labels.index(total)
    assert end > 3
    numeric_columns = [index for index in range(1, len(rows[0])) if rows[0][index] != "share"]
    assert len(numeric_columns) >= 2
    for column in numeric_columns:
        assert sum(integer(row[column]) for row in rows[1:end]) == integer(rows[end][column])


def test_layers_times_count_are_the_model(deepseek: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    print_analysis(deepseek)
    rows = columns_of(capsys.readouterr().out, "Parameters")
    header, attention = rows[0], next(row for row in rows if row[0] == "attention")
    assert header[1:4] == ["dense layer × 3", "moe layer × 58", "model"]
    assert 3 * integer(attention[1]) + 58 * integer(attention[2]) == integer(attention[3])


def test_conventions_are_printed(deepseek: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    print_analysis(deepseek)
    out = " ".join(capsys.readouterr().out.split())
    assert all(note in out for note in deepseek.notes)
    assert "batch 1, sequence length 4,096 (given), fused kernels." in out
    assert "The step was measured in bfloat16." in out


def test_nothing_is_cut_in_a_pipe(deepseek: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    print_analysis(deepseek)
    print_budget(plan_budget(1e9, gpus=["H100", "B200"]))
    for line in capsys.readouterr().out.splitlines():
        assert not re.search(r"…(?! (with|without|of|for)\b)", line)


def test_a_name_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    analysis = analyze(spec_from_fields(DEEPSEEK_V3, "[red]odd[/blue]"), Setup(sequence_length=16), step=False)
    print_analysis(analysis)
    assert "[red]odd[/blue]" in capsys.readouterr().out


def test_windows_have_their_own_rows(capsys: pytest.CaptureFixture[str]) -> None:
    print_analysis(analyze("mistral_7b", Setup(sequence_length=8192), step=False))
    labels = [row[0] for row in columns_of(capsys.readouterr().out, "Forward FLOPs of one sequence")]
    assert labels[-3:] == ["total, attention within windows", "total, causal within windows", "total, full attention"]
