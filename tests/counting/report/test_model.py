"""Formats, and tables whose rows sum to their totals."""

import re
from collections.abc import Callable

import pytest

from counting.analysis import Analysis, analyze
from counting.cost.budget import plan_budget
from counting.cost.design_for_budget import design_for_budget
from counting.report import model as report
from tests.shrunken import DEEPSEEK_V3
from torch_models.fields.config import spec_from_fields


@pytest.fixture(scope="module")
def deepseek() -> Analysis:
    return analyze("deepseek_v3_config.json", sequence_length=4096)


@pytest.mark.parametrize(
    ("value", "decimals", "expected"),
    [
        (897_648_164_864, 12, "0.897648164864"),
        (10**12, 12, "1"),
        (15 * 10**11, 12, "1.5"),
        (1, 12, "0.000000000001"),
        (0, 9, "0"),
        (2**70, 9, "1180591620717.411303424"),
    ],
)
def test_shifted_is_exact(value: int, decimals: int, expected: str) -> None:
    assert report.shifted(value, decimals) == expected


@pytest.mark.parametrize(
    ("part", "whole", "expected"), [(1, 4, "25.00 %"), (0, 4, "0.00 %"), (1, 10**6, "< 0.01 %"), (5, 5, "100.00 %")]
)
def test_share(part: int, whole: int, expected: str) -> None:
    assert report.share(part, whole) == expected


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
    report.print_analysis(deepseek)
    rows = columns_of(capsys.readouterr().out, title)
    labels = [row[0] for row in rows]
    end = labels.index(total)
    assert end > 3
    numeric_columns = [index for index in range(1, len(rows[0])) if rows[0][index] != "share"]
    assert len(numeric_columns) >= 2
    for column in numeric_columns:
        assert sum(integer(row[column]) for row in rows[1:end]) == integer(rows[end][column])


def test_layers_times_count_are_the_model(deepseek: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    report.print_analysis(deepseek)
    rows = columns_of(capsys.readouterr().out, "Parameters")
    header, attention = rows[0], next(row for row in rows if row[0] == "attention")
    assert header[1:4] == ["dense layer × 3", "moe layer × 58", "model"]
    assert 3 * integer(attention[1]) + 58 * integer(attention[2]) == integer(attention[3])


def test_every_check_is_printed(deepseek: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    report.print_analysis(deepseek)
    out = capsys.readouterr().out
    checks = deepseek.agreement.checks
    assert f"{len(checks)} numbers, each measured = formula" in out
    for check in checks:
        pattern = rf"{check.scope} +{check.quantity} +{check.component} +{check.measured:,} += +{check.analytic:,}"
        assert re.search(pattern, out), check


def test_conventions_are_printed(deepseek: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    report.print_analysis(deepseek)
    out = " ".join(capsys.readouterr().out.split())
    assert all(note in out for note in deepseek.conventions.notes)
    assert "sequence length 4,096 (from seq_len), fused kernels" in out


def test_nothing_is_cut_in_a_pipe(deepseek: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    report.print_analysis(deepseek)
    report.print_budget(plan_budget(1e9, gpus=["H100", "B200"]))
    for line in capsys.readouterr().out.splitlines():
        assert "…" not in line.replace("… w", "").replace("… of", "")


def test_a_name_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    analysis = analyze(spec_from_fields(DEEPSEEK_V3, "[red]odd[/blue]"), sequence_length=16)
    report.print_analysis(analysis)
    assert "[red]odd[/blue]" in capsys.readouterr().out


@pytest.mark.parametrize("lines", [report.budget_lines])
def test_budget_lines(lines: Callable[..., list[str]]) -> None:
    plan = plan_budget(5_000_000)
    assert lines(plan) == [
        "best_gpu: A100",
        "training_budget_flops: 5.616e+23",
        f"Optimal N: {plan.optimal_parameters}",
        f"Optimal D: {plan.optimal_tokens}",
    ]


def test_design_table(capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_budget(10_000)
    design = design_for_budget(plan, name="mine")
    report.print_design(design, "[b]mine.json")
    out = " ".join(capsys.readouterr().out.split())
    config = design.config
    assert "written to [b]mine.json" in out
    assert f"{config['num_hidden_layers']} × {config['hidden_size']}" in out
    assert f"{config['num_attention_heads']} queries on {config['num_key_value_heads']} keys and values" in out
    assert f"{design.parameters:,} (" in out
    assert f"{design.tokens:,} (" in out
    assert f"{design.training_flops_per_token:,} (3 ×" in out


def test_windows_have_their_own_rows(capsys: pytest.CaptureFixture[str]) -> None:
    report.print_analysis(analyze("mistral_7b", sequence_length=8192))
    labels = [row[0] for row in columns_of(capsys.readouterr().out, "Forward FLOPs of one sequence")]
    assert labels[-3:] == ["total, attention within windows", "total, causal within windows", "total, full attention"]
