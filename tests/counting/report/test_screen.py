"""The first screen: what it says, and that it is one."""

import json
from pathlib import Path

import msgspec
import pytest

from counting.analysis import Analysis, analyze
from counting.cost.budget import plan_budget
from counting.cost.budget_on_model import spend_on
from counting.cost.fits import fits_on
from counting.cost.hardware import find_gpu, load_gpus
from counting.cost.run import RunPlan, plan_run
from counting.report import Results
from counting.report.format import NONE
from counting.setup import Setup
from model_training_cost_analysis import main
from tests.counting.batches import with_micro_batches
from tests.foreign_families import FAMILIES
from tests.screens import printed, words
from tests.shrunken import DEEPSEEK_V3, LLAMA
from torch_models.fields.config import spec_from_fields

EVERY_GPU = "V100,T4,A100,L4,L40S,H100,H100-PCIe,H800,H20,H200,B200,GB200,MI250X,MI300X,TPU-v4,TPU-v5e,TPU-v5p"
PRICED = "V100,T4,A100,H100,H800,H200,B200"
COMMANDS = [
    "--model_config llama_7b",
    "--model_config deepseek_v3",
    "--model_config gpt_oss_20b --seq_len 100000 --recompute full --loss_chunk 4096",
    "--model_config mixtral_8x7b --kernels eager --seq_len 2048",
    "--model_config bigcode.json",
    "--model_config llama_7b --gpus H100,B200",
    f"--model_config mistral_7b --gpus {EVERY_GPU}",
    "--model_config llama_7b --tokens 15T --gpus H100,B200 --num_gpus 2048",
    f"--model_config deepseek_v3 --tokens 14.8T --gpus {PRICED} --num_gpus 8 --global_batch_tokens 62914560",
    "--model_config deepseek_v3 --tokens 14.8T --gpus A100,H100,H800,H200,B200 --gpu_hours 10M --num_gpus 2048",
    "--model_config llama_7b --tokens 1T --gpus H100 --tokens_per_second_per_gpu 11000",
    "--training_budget 5000000",
    "--training_budget 5000000 --num_gpus 1024 --model_config deepseek_v3",
    "--training_budget 5000000 --unique_tokens 300B --inference_tokens 2T --expansion_rate 16",
    "--training_budget 5M --unique_tokens 300B --inference_tokens 2T --expansion_rate 16 --model_config deepseek_v3",
    "--model_config llama_7b --tokens 1T --gpus H100 --training_budget 5000000",
    "--model_config llama_7b deepseek_v3 mistral_7b",
    "--model_config llama_7b deepseek_v3 --gpus H100,H200",
    f"--model_config llama_7b deepseek_v3 llama_3_1_405b --tokens 15T --gpus {PRICED} --num_gpus 2048",
    "--model_config llama_7b deepseek_v3 llama_3_1_405b --tokens 15T --gpus H100 --compare",
    "--published",
    "--claim",
]


@pytest.fixture(scope="module")
def llama() -> Analysis:
    return analyze("llama_7b")


@pytest.fixture(scope="module")
def deepseek() -> Analysis:
    return analyze("deepseek_v3", Setup(sequence_length=4096))


# --- One screen ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_one_screen(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At most 30 lines of 80 columns for one model, and 10 for each further one; nothing at the ends of lines."""
    (tmp_path / "bigcode.json").write_text(json.dumps(FAMILIES["gpt_bigcode"][0] | {"model_type": "gpt_bigcode"}))
    monkeypatch.setenv("COLUMNS", "80")
    assert main(command.replace("bigcode.json", str(tmp_path / "bigcode.json")).split()) == 0
    lines = capsys.readouterr().out.splitlines()
    models = max(1, sum(line.startswith("Number of parameters") for line in lines), 3 * ("--compare" in command))
    assert len(lines) <= 30 + 10 * (models - 1)
    assert [line for line in lines if len(line) > 80 or line != line.rstrip()] == []
    assert len(lines) > 10


@pytest.mark.parametrize("width", [40, 100, 250])
def test_it_has_the_width_of_the_output(width: int, llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, Results(analyses=[llama]), width=width).splitlines()[4:]
    assert max(map(len, lines)) <= width
    assert max(map(len, lines)) > min(0.8 * width, 80)


@pytest.mark.parametrize("width", ["60", "66", "80"])
def test_published_runs_have_the_width_of_the_output(
    width: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    assert main(["--published"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 22
    assert max(map(len, lines)) <= int(width)


# --- A model ---------------------------------------------------------------------------------------------------------


def test_a_dense_model(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, Results(analyses=[llama])).splitlines()[4:] == [
        "llama_7b: llama, 32 layers, 2,048 tokens (from max_sequence_length)",
        "  above           parameters: the model; TFLOPs, GBs: one dense layer's forward",
        "  parameters      6.74 B: mlp 64.2 %, attention 31.9 %, word_embedding 1.9 %",
        "  FLOPs a token   forward 14.3 (7.5 % attention's square), training 42.9 GFLOP",
        "  one layer       0.754 GB: weights 0.405, input 0.017, saved 0.299, transients",
        "                  0.034",
        "  a training step 108.3 GB, in the optimiser step; mixed, adamw, recompute none",
        "    states        107.8 GB: weights 13.5, gradients 13.5, optimiser 80.9",
        "    beside, up to activations 10.1, logits and loss 0.8, transients 0.5",
        "  conventions     one sequence, one device; matrix products only, 2 FLOPs a",
        "                  multiply-add, attention's full square; GB = 10^9 bytes",
        f"  proof           {len(llama.agreement.checks)} numbers: measured = formula or simulation",
    ]


def test_a_mixture_of_experts(deepseek: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    out = words(printed(capsys, Results(analyses=[deepseek])))
    assert "deepseek_v3: 61 layers, 4,096 tokens (given)" in out
    assert "671 B, active 37.6 B: routed_experts 97.4 %, attention 1.7 %, shared_experts 0.4 %; beside them mtp" in out
    assert "forward 93.7 (21.8 % attention's square), training 292 GFLOP with mtp" in out
    assert "one moe layer's forward" in out


def test_a_field_says_the_length_by_its_own_name(capsys: pytest.CaptureFixture[str]) -> None:
    analysis = analyze("deepseek_v3", step=False)
    out = printed(capsys, Results(analyses=[analysis]))
    assert "deepseek_v3: 61 layers, 4,096 tokens (from original_max_position_embeddings)\n" in out


def test_how_a_step_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    setup = Setup(
        sequence_length=16,
        recompute="full",
        loss_chunk=7,
        kernels="eager",
        precision="fp8",
        optimizer="muon",
        clip_gradients=True,
    )
    analysis = analyze(spec_from_fields(DEEPSEEK_V3, "small"), setup)
    assert analysis.training is not None
    out = words(printed(capsys, Results(analyses=[analysis])))
    assert "16 tokens (given), eager kernels" in out
    assert "; fp8, muon, recompute full, loss chunk 7, clipped gradients" in out
    assert f"executed {analysis.training.hardware_flops_per_token / 1e6:.3g} MFLOP with recompute full" in out
    assert "by recipe" in out


def test_windows_are_no_square(capsys: pytest.CaptureFixture[str]) -> None:
    out = words(printed(capsys, Results(analyses=[analyze("mistral_7b", Setup(sequence_length=8192), step=False)])))
    assert "% attention within windows)" in out
    assert "attention's full square, or its window" in out


def test_keys_that_are_chosen_are_no_window(capsys: pytest.CaptureFixture[str]) -> None:
    analysis = analyze("deepseek_v3_2", Setup(sequence_length=4096), step=False)
    out = words(printed(capsys, Results(analyses=[analysis])))
    indexer = 100 * analysis.forward_only_flops / analysis.forward_flops
    assert f"% attention to chosen keys, {indexer:.1f} % indexer), training" in out
    assert "attention's full square, or the keys that the indexer chooses" in out
    assert "window" not in out


def test_a_family_without_a_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object) -> None:
        raise RuntimeError("it does not train")

    monkeypatch.setattr("counting.via_transformers.step.to_run.BuiltToRun.loss", fails)
    config = tmp_path / "small.json"
    config.write_text(json.dumps(FAMILIES["bloom"][0] | {"model_type": "bloom"}))
    analysis = analyze(config, Setup(sequence_length=16))
    out = words(printed(capsys, Results(analyses=[analysis], on_catalogue=[()])))
    assert "one layer its memory is not measured" in out
    assert "a training step is not measured: it does not train" in out
    assert "proof Measured, no formula. " in out
    assert "trace = dispatch" in out
    assert "fits" not in out
    asked = msgspec.structs.replace(analysis, fits=fits_on(analysis, load_gpus()))
    out = words(printed(capsys, Results(analyses=[asked])))
    assert "small fit on one device? not known a training step is not measured: it does not train small:" in out
    both = words(printed(capsys, Results(analyses=[analysis, analyze(LLAMA, Setup(sequence_length=16))])))
    assert "Measured, no formula: small. " in both


def test_a_name_of_any_length_is_wrapped(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    long = msgspec.structs.replace(llama, name="a_model_with_a_name_that_is_longer_than_any_line_" * 3)
    run = plan_run(long, RunPlan(tokens=10**12, gpus=("H100",), num_gpus=8))
    lines = printed(capsys, Results(analyses=[long, long], runs=[run, run])).splitlines()
    assert [line for line in lines if len(line) > 80 and not line.startswith("Model: ")] == []


# --- What was asked for ----------------------------------------------------------------------------------------------


def test_a_run(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    plan = RunPlan(tokens=15 * 10**12, gpus=("H100", "B200"), num_gpus=1)
    run = plan_run(with_micro_batches(llama, 2000), plan)
    lines = printed(capsys, Results(analyses=[llama], runs=[run])).splitlines()
    assert lines[4] == "Training llama_7b on 15 T tokens with 1 GPU at 30 % to 50 % MFU, assumed"
    (h100, _) = run.gpus
    hours = [outcome.gpu_hours for outcome in h100.outcomes]
    assert lines[6].split()[:3] == ["H100", "3.00", f"{hours[-1]:,.0f}{NONE}{hours[0]:,.0f}"]
    assert lines[6].endswith(f"$1.08{NONE}1.81 M")
    text = words("\n".join(lines))
    assert "FLOPs 6.430e+23, 42.9 GFLOP a token; 3,662,110 steps of 4.10 M tokens" in text
    assert "GPUs at least 2 H100 and 1 B200 hold the model states, 107.8 GB; left out: activations, logits and" in text
    assert run.beside_states_bytes is not None
    assert f"(up to {run.beside_states_bytes / 1e9:.1f} GB on each for one micro-batch), the update" in text
    assert run.update_bytes == 4 * 131_072_000  # the largest gradient in fp32
    assert "the update (0.524 GB in all), buffers, fragments" in text
    assert "1 H100 cannot hold the model states" in text
    assert "B200 cannot hold" not in text
    assert "not in the bill failed runs" in text


def test_hours_and_speeds_imply_utilisations(deepseek: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    hours = RunPlan(tokens=148 * 10**11, gpus=("H800",), gpu_hours=2_664_000)
    text = words(printed(capsys, Results(analyses=[deepseek], runs=[plan_run(deepseek, hours)])))
    assert "Training deepseek_v3 on 14.8 T tokens in 2,664,000 GPU-hours" in text
    assert (
        "implied MFU H800: 6 N 35.16 %; 6 N' + full attention 43.87 %; 6 N' + causal attention 39.08 %; the model's "
        "own count 45.54 %"
    ) in text
    assert (
        "is it possible yes: the fewest FLOPs that training computes take 39 % of the peak; by its own count it is "
        "within the 30 % to 50 % MFU that is assumed where none is given"
    ) in text
    speed = RunPlan(tokens=148 * 10**11, gpus=("H800",), tokens_per_second_per_gpu=1500)
    text = words(printed(capsys, Results(analyses=[deepseek], runs=[plan_run(deepseek, speed)])))
    assert "Training deepseek_v3 on 14.8 T tokens at 1,500 tokens/s per GPU" in text
    assert "H800 2.00 2.74 M $5.48 M" in text


def test_above_the_peak(capsys: pytest.CaptureFixture[str]) -> None:
    """At its longest sequence causal attention takes 97 % of the peak, and the full square is more than all of it."""
    long = analyze("deepseek_v3", Setup(sequence_length=32_768), step=False)
    run = plan_run(long, RunPlan(tokens=148 * 10**11, gpus=("H800",), gpu_hours=2_000_000))
    text = words(printed(capsys, Results(analyses=[long], runs=[run])))
    assert "above 100 % more is counted than a causal kernel computes" in text
    assert "is it possible not excluded: the fewest FLOPs that training computes take 97 % of the peak; by its" in text
    in_fp8 = analyze("llama_7b", Setup(precision="fp8"), step=False)
    run = plan_run(in_fp8, RunPlan(tokens=10**12, gpus=("H100",), gpu_hours=8_000))
    text = words(printed(capsys, Results(analyses=[in_fp8], runs=[run])))
    assert "above 100 % in FP8" in text
    assert "than a causal kernel" not in text


def test_the_last_gpus_of_many_are_left_to_the_details(capsys: pytest.CaptureFixture[str]) -> None:
    analyses = [analyze(spec_from_fields(LLAMA, f"small_{index}"), Setup(sequence_length=16)) for index in range(3)]
    names = tuple(gpu.name for gpu in load_gpus())
    plan = RunPlan(tokens=10**12, gpus=names, prices_usd_per_hour=dict.fromkeys(names, 2.0))
    runs = [plan_run(analysis, plan) for analysis in analyses]
    out = printed(capsys, Results(analyses=analyses, runs=runs))
    rows = sum(out.count(f" {name} ") for name in names)
    assert 3 <= rows < 3 * len(names)
    assert f"and {3 * len(names) - rows} rows more, which the details have" in out
    (row,) = [line for line in out.splitlines() if line.startswith("  small_1 ") and " V100 " in line]
    assert row.split()[1] == "V100"


def test_bill_and_budget_of_one_model(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    """Notes are left out before a row that was asked for, and the model is there."""
    run = plan_run(llama, RunPlan(tokens=10**12, gpus=("H100", "B200")))
    budget = plan_budget(5_000_000, gpus=["H100", "B200"])
    results = Results(analyses=[llama], runs=[run], budget=budget, spent=[spend_on(llama, budget)])
    out = printed(capsys, results)
    for asked in ("  H100    3.00", "  B200    6.00", "best model", "the budget on", "a step 108.3 GB", "proof"):
        assert asked in out
    assert "conventions" not in out
    assert "not in the bill" not in out


def test_formats_that_a_gpu_does_not_multiply(capsys: pytest.CaptureFixture[str]) -> None:
    plan = RunPlan(tokens=10**12, gpus=("A100", "H100"), mfus=(0.4,))
    said = {}
    for precision in ("mixed", "fp32", "fp8"):
        analysis = analyze("llama_7b", Setup(precision=precision), step=False)
        said[precision] = words(printed(capsys, Results(analyses=[analysis], runs=[plan_run(analysis, plan)])))
    assert "its own count; fp32 products run at a fraction of it" in said["fp32"]
    assert "its own count; A100 cannot multiply in FP8" in said["fp8"]
    assert "its own count not in the bill" in said["mixed"]
    slow = analyze("llama_7b", Setup(precision="fp32"), step=False)
    run = plan_run(slow, RunPlan(tokens=10**12, gpus=("A100",), tokens_per_second_per_gpu=3000))
    text = words(printed(capsys, Results(analyses=[slow], runs=[run])))
    assert "is it possible not excluded: the fewest FLOPs that training computes take 40 % of the 16-bit peak" in text


def test_long_names_of_gpus_and_models_are_cut(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    long = msgspec.structs.replace(find_gpu("H100"), name="a_gpu_of_a_very_long_name" * 3)
    runs = [plan_run(llama, RunPlan(tokens=10**12, gpus=(long,), num_gpus=1000)) for _ in range(2)]
    lines = printed(capsys, Results(analyses=[llama, llama], runs=runs)).splitlines()
    assert max(map(len, lines)) <= 80


def test_an_equal_buy_is_not_less(capsys: pytest.CaptureFixture[str]) -> None:
    budget = plan_budget(5_000_000, gpus=["H100", "H200", "A100"], prices_usd_per_hour={"H100": 2.5, "H200": 2.5})
    text = words(printed(capsys, Results(budget=budget)))
    assert "as much on H200 2.848e+24 less on A100" in text


def test_a_budget(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    budget = plan_budget(5_000_000, num_gpus=1024)
    spent = spend_on(llama, budget)
    assert budget.days is not None
    assert budget.more_on is not None
    text = words(printed(capsys, Results(analyses=[llama], budget=budget, spent=[spent])))
    assert "What $5 M buys at 40 % MFU FLOPs 5.616e+23: 1.25 M A100-hours at $4.00" in text
    assert f"more on {budget.more_on.gpu}, of all in the catalogue" in text
    assert f"days {budget.days:.1f} on 1,024 A100" in text
    assert "best model 47.5 B parameters on 1.97 T tokens, 41.5 per parameter; predicted loss 1.897" in text
    assert "course; extrapolated" in text
    assert "llama_7b 13.1 T total, 6.74 B 1,944 65.6 1.940*" in text
    named = words(printed(capsys, Results(budget=plan_budget(5_000_000, gpus=["A100"]))))
    assert "more on" not in named
    assert "days" not in named


def test_a_comparison_of_one_length(capsys: pytest.CaptureFixture[str]) -> None:
    """The costs of DeepSeek-V3 and Llama-3.1 405B at the smaller one's length."""
    assert (
        main(["--model_config", "deepseek_v3", "llama_3_1_405b", "--compare", "--tokens", "15T", "--gpus", "H100"]) == 0
    )
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()[2:4]]
    assert [(row[0], *row[-3:]) for row in rows] == [
        ("deepseek_v3", "$9.22", "M", "1.00"),
        ("llama_3_1_405b", "$79.8", "M", "8.65"),
    ]
    text = words(out)
    assert (
        "of 4,096 tokens for all; the smallest default of these models, from original_max_position_embeddings of"
        in text
    )
    assert "routing saves deepseek_v3 92.9 %" in text


def test_published_runs_and_the_claim(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--published", "--claim"]) == 0
    out = capsys.readouterr().out
    (row,) = [line.split() for line in out.splitlines() if line.startswith("  DeepSeek-V3  ")]
    assert row == ["DeepSeek-V3", "H800", "35.2", "43.9", "39.1", "45.5", "4", "+0.18", "%"]
    text = words(out)
    assert "Was DeepSeek-V3 trained for $5,576,000?" in text
    assert "yes, the hours imply an MFU of: 6 N 35.16 %" in text
    assert "earlier research, and ablations" in text
