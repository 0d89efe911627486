"""Tables of runs, comparisons and published bills: what they say, whole and in a pipe's width."""

import re

import pytest

from counting.analysis import Analysis, analyze
from counting.cost.budget import plan_budget
from counting.cost.budget_on_model import spend_on
from counting.cost.comparison import compare
from counting.cost.run import RunPlan, plan_run
from counting.published.claim import examine_claim
from counting.published.runs import examine_published_runs
from counting.report.details.budget import budget_on_model_parts
from counting.report.details.claim import claim_parts
from counting.report.details.comparison import comparison_parts
from counting.report.details.run import run_parts
from counting.report.format import NONE
from counting.report.printing import print_parts
from counting.report.published.bills import published_parts
from counting.setup import Setup
from tests.counting.batches import with_micro_batches

WIDTH = 120


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))


@pytest.fixture(scope="module")
def deepseek() -> Analysis:
    return analyze("deepseek_v3", Setup(sequence_length=4096), step=False)


def cells(text: str, title: str) -> list[list[str]]:
    """The rows under `title`, as cells."""
    rows = []
    for line in text[text.index(title) :].splitlines()[1:]:
        if line.startswith("└"):
            break
        if line.startswith(("│", "┃")):
            rows.append([cell.strip() for cell in re.split("[│┃]", line)[1:-1]])
    return rows


def words(text: str) -> str:
    return " ".join(re.sub("[│┃]", " ", text).split())


def test_a_run(deepseek: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    plan = RunPlan(tokens=148 * 10**11, gpus=("H800", "B200"), num_gpus=64, mfus=(0.5,))
    run = plan_run(with_micro_batches(deepseek, 15_360), plan)
    print_parts(run_parts(run))
    out = capsys.readouterr().out
    assert all(len(line) <= WIDTH for line in out.splitlines())
    rows = cells(out, "Time, cost and energy")
    assert [row[0] for row in rows[1:]] == ["H800", "B200"]
    outcome = run.gpus[0].outcomes[0]
    assert rows[1][1:5] == ["50.00 %", "64", "2.00", f"{outcome.gpu_hours:,.0f}"]
    assert rows[1][7] == f"${outcome.cost_usd:,.0f}"
    text = words(out)
    assert f"{run.training_flops_per_token:,}" in text
    assert "sequence length 4,096, given, with multi-token prediction" in text
    assert f"{run.steps:,} of 62,914,560 tokens" in text
    assert "64 H800 cannot hold the model states: at least 129 are needed" in text
    assert "the length that is trained at" not in text
    assert "64 B200 cannot hold" not in text
    assert "GPUs at least 129 H800, 58 B200; left out: activations, logits, buffers and fragments" in text


def test_a_run_of_a_foreign_length_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    print_parts(run_parts(plan_run(analyze("llama_7b", step=False), RunPlan(tokens=10**12, gpus=("A100",)))))
    assert (
        "At sequence length 2,048 (from max_sequence_length) the products of attention are 8 % of the model's FLOPs; "
        "give the sequence length of the training run if it is another."
    ) in words(capsys.readouterr().out)


def test_implied_mfu_above_1_is_above_the_peak(capsys: pytest.CaptureFixture[str]) -> None:
    """At a length where attention is more than half of DeepSeek-V3's FLOPs, if its full square is counted."""
    plan = RunPlan(tokens=148 * 10**11, gpus=("H800",), gpu_hours=2_000_000)
    run = plan_run(analyze("deepseek_v3", Setup(sequence_length=32_768), step=False), plan)
    print_parts(run_parts(run))
    out = capsys.readouterr().out
    implied, rows = run.gpus[0].implied_mfu, cells(out, "What 2,000,000 GPU-hours imply")
    assert [row[1] for row in rows[1:]] == [
        "6 N",
        "6 N' + full attention",
        "6 N' + causal attention",
        "the model's own count",
    ]
    assert [entry.mfu > 1 for entry in implied] == [False, True, False, True]
    assert [row[-1].endswith(" %, above the peak") for row in rows[1:]] == [False, True, False, True]
    assert cells(out, "Time, cost and energy")[1][1].endswith(" %, above the peak")
    assert "Above the peak: this convention counts more FLOPs" in words(out)


def test_fp8_is_held_against_its_own_peak(capsys: pytest.CaptureFixture[str]) -> None:
    in_fp8 = analyze("llama_7b", Setup(precision="fp8"), step=False)
    print_parts(run_parts(plan_run(in_fp8, RunPlan(tokens=10**12, gpus=("H100",), gpu_hours=8_000))))
    out = capsys.readouterr().out
    rows = cells(out, "What 8,000 GPU-hours imply")
    assert all(row[-1].endswith(" %, in FP8") for row in rows[1:])
    assert cells(out, "Time, cost and energy")[1][1].endswith(" %, in FP8")
    assert "mpossible" not in words(out)
    llama = analyze("llama_7b", step=False)
    print_parts(run_parts(plan_run(llama, RunPlan(tokens=10**12, gpus=("A100",), gpu_hours=82_432))))
    assert "mpossible" not in words(capsys.readouterr().out)


def test_all_of_the_peak_is_possible(capsys: pytest.CaptureFixture[str]) -> None:
    print_parts(
        run_parts(plan_run(analyze("llama_7b", step=False), RunPlan(tokens=10**12, gpus=("A100",), mfus=(1.0,))))
    )
    assert cells(capsys.readouterr().out, "Time, cost and energy")[1][1] == "100.00 %"


def test_fp32_does_not_reach_the_16_bit_peak(capsys: pytest.CaptureFixture[str]) -> None:
    for precision, said in (("fp32", True), ("mixed", False)):
        llama = analyze("llama_7b", Setup(precision=precision), step=False)
        print_parts(run_parts(plan_run(llama, RunPlan(tokens=10**12, gpus=("A100",)))))
        assert ("No GPU multiplies fp32 numbers at its 16-bit peak" in words(capsys.readouterr().out)) == said


def test_a_comparison(deepseek: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    llama = analyze("llama_7b", Setup(sequence_length=4096))
    assert llama.memory is not None
    analyses = [deepseek, llama]
    comparison = compare(analyses, RunPlan(tokens=10**12, gpus=("H100",), mfus=(0.4,)))
    print_parts(comparison_parts(comparison))
    out = capsys.readouterr().out
    sizes, bill = cells(out, "Training 1,000,000,000,000 tokens on H100 at 40 % MFU"), cells(out, "The bill")
    assert [row[0] for row in sizes[1:]] == [row[0] for row in bill[1:]] == ["deepseek_v3", "llama_7b"]
    assert sizes[1][1:3] == ["671,026,404,352", "37,552,282,624"]
    assert sizes[1][5] == "92.9 %"
    assert bill[2][4] == "1.00"
    assert [row[6] for row in bill[1:]] == [NONE, f"{llama.memory.peak_bytes / 10**9:,.1f}"]
    assert [row[1] for row in cells(out, "GPUs at least")[1:]] == ["2", "activations, logits, buffers and fragments"]
    assert "deepseek_v3" in words(out[out.index("GPUs at least") :])


def test_a_budget_on_a_model(deepseek: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_budget(5_000_000)
    spent = spend_on(deepseek, plan)
    print_parts(budget_on_model_parts(spent, plan))
    out = capsys.readouterr().out
    rows = cells(out, "The scaling law course applied to it")
    assert [row[:2] for row in rows[1:]] == [["total", "671,026,404,352"], ["active", "37,552,282,624"]]
    assert rows[1][-1] == f"{spent.readings[0].predicted_loss:.5f} *"
    assert "fitted to dense models" in words(out)
    llama = spend_on(analyze("llama_7b", step=False), plan)
    print_parts(budget_on_model_parts(llama, plan))
    assert "fitted to dense models" not in words(capsys.readouterr().out)


def test_published(capsys: pytest.CaptureFixture[str]) -> None:
    runs = examine_published_runs()
    print_parts(published_parts(runs))
    out = capsys.readouterr().out
    assert all(len(line) <= WIDTH for line in out.splitlines())
    hours, figures = cells(out, "The MFU that"), cells(out, "Stated figures, and ours")
    assert [row[0] for row in hours[1:]] == [run.name for run in runs if run.implied_mfu]
    of_figures = [row for row in figures[1:] if any(row[1:])]
    assert len(of_figures) == sum(len(run.figures) for run in runs)
    assert [row[0] for row in figures[1:] if not any(row[1:])] == [run.name for run in runs if run.figures]
    by_name = {row[0]: row for row in hours}
    assert by_name["DeepSeek-V3"][2:] == [
        "14.8 T",
        "2,664,000",
        "4.319e+24",
        "35.16 %",
        "43.87 %",
        "39.08 %",
        "45.54 %",
    ]
    assert by_name["PaLM 540B"][-4:] == ["45.73 %", "46.23 %", NONE, NONE]
    assert ["MFU, %", "6 N' + full", "43.73", "43.83", "+0.23 %"] in figures
    text = words(out)
    for run in runs:
        assert run.source in text
        assert (run.note or "") in text


def test_the_claim_on_one_page(capsys: pytest.CaptureFixture[str]) -> None:
    print_parts(claim_parts(examine_claim()))
    out = capsys.readouterr().out
    assert all(len(line) <= WIDTH for line in out.splitlines())
    assert cells(out, "1. The claim: DeepSeek-V3 for $5,576,000")[-1] == ["total", "2,788,000", "$5,576,000"]
    meaning = cells(
        out, "2. The MFU that 2,664,000 H800-hours for 14,800,000,000,000 tokens imply, 54.2 days on 2,048 GPUs"
    )
    assert meaning[2][-2:] == ["43.87 %", "43.73 %"]
    assert cells(out, "3. The same")[2] == ["H100", "989", "3.00", "2,664,000", "$7,992,000"]
    assert [row[0] for row in cells(out, "4. Other models")[1:]] == [
        "DeepSeek-V3",
        "dense, of its total size",
        "dense, of its active size",
    ]
    implied = [row for row in cells(out, "5. The cost") if "(implied)" in row[0]]
    assert implied == [["45.54 % (implied)", "2,664,000", "$2,664,000", "$5,328,000", "$7,992,000", "$10,656,000"]]
    assert "earlier research, and ablations" in words(out)


def test_flops_and_states_of_an_indexer_are_said(deepseek: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    """Its FLOPs count once, and it has weights alone: where a model has one, and of no other."""
    glm = analyze("glm_5", Setup(sequence_length=4096), step=False)
    budget, plan = plan_budget(5_000_000), RunPlan(tokens=10**12, gpus=("H100",), mfus=(0.4,))
    for analysis, passes, of_states in (
        (glm, "(3 × forward, an indexer's once, at sequence length 4,096", "16 bytes per trained parameter"),
        (deepseek, "(3 × the forward pass at sequence length 4,096", "16 bytes per parameter"),
    ):
        print_parts(run_parts(plan_run(analysis, plan)))
        text = words(capsys.readouterr().out)
        assert passes in text
        assert of_states in text
        print_parts(budget_on_model_parts(spend_on(analysis, budget), budget))
        assert passes in words(capsys.readouterr().out)
        llama = analyze("llama_7b", Setup(sequence_length=4096), step=False)
        print_parts(comparison_parts(compare([llama, analysis], plan)))
        assert of_states in words(capsys.readouterr().out)
