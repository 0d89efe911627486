"""The command as a user types it: what it prints where, what it writes, and how it fails."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from counting import analytic
from counting.analysis import Analysis
from counting.counts import Counts
from counting.training_cost import BudgetPlan
from model_training_cost_analysis import VERSION, main
from tests.shrunken import DEEPSEEK_V3, LLAMA
from torch_models.config import read_spec, spec_from_fields
from torch_models.spec import GatedMLPSpec

SCRIPT = Path(__file__).resolve().parent.parent / "model_training_cost_analysis.py"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False, **options)


# --- Analyses --------------------------------------------------------------------------------------------------


def test_llama_7b_in_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model_config", "llama_7b_config.json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[:3] == [
        "Number of parameters: 6738415616",
        "Number of TFLOPs: 0.897648164864",
        "Peak memory cost: 0.753696792 GBs",
    ]
    assert captured.err == ""
    assert "Not in the config" in captured.out


def test_deepseek_v3_speaks_of_the_moe_layer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model_config", "deepseek_v3_config.json", "--seq_len", "4096"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[:2] == ["Number of parameters: 671026404352", "Number of TFLOPs: 6.169183649792"]
    assert "moe layer (58 of 61)" in out
    for figure in ("6,154,151,264,256", "37,552,282,624", "14,848", "11,610,067,968"):
        assert figure in out


def test_json_is_one_document_and_lossless(capsys: pytest.CaptureFixture[str]) -> None:
    configs = ["llama_7b_config.json", "deepseek_v3_config.json"]
    assert main(["--json", "--model_config", *configs, "--seq_len", "2048", "--training_budget", "5e6"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document.keys() == {"schema_version", "analyses", "runs", "comparison", "budget", "published", "claim"}
    assert (document["runs"], document["comparison"], document["published"], document["claim"]) == (
        [],
        None,
        None,
        None,
    )
    assert document["schema_version"] == 1
    assert [analysis["name"] for analysis in document["analyses"]] == ["llama_7b", "deepseek_v3"]

    deepseek = document["analyses"][1]
    assert deepseek["model_type"] == "deepseek_v3"
    conventions = deepseek["conventions"]
    assert conventions["sequence_length"] == 2048
    assert conventions["sequence_length_source"] == "seq_len"
    assert (conventions["batch_size"], conventions["dtype"], conventions["kernels"]) == (1, "float16", "fused")
    parameters = deepseek["parameters"]
    assert parameters["total"] == sum(parameters["by_component"].values()) == 671_026_404_352
    for key in ("active", "active_without_embedding", "mtp", "router_correction_bias"):
        assert isinstance(parameters[key], int)
    for layer in deepseek["layers"]:
        assert layer["forward_flops"] == sum(layer["forward_flops_by_component"].values())
        assert layer["peak_memory_bytes"] == sum(layer["peak_memory_parts"].values())
        for key in ("count", "parameters", "forward_flops", "forward_flops_causal", "peak_memory_no_grad_bytes"):
            assert isinstance(layer[key], int)
    in_layers = sum(layer["count"] * layer["forward_flops"] for layer in deepseek["layers"])
    assert deepseek["forward_flops"] == in_layers + deepseek["forward_flops_by_component"]["lm_head"]
    assert deepseek["agreement"]["ok"] is True
    assert all(check["measured"] == check["analytic"] for check in deepseek["agreement"]["checks"])
    assert {"quantity", "scope", "component", "measured", "analytic"} == deepseek["agreement"]["checks"][0].keys()

    budget = document["budget"]
    assert budget["best_gpu"] == "A100"
    assert budget["training_flops"] == 5616 * 10**20
    assert isinstance(budget["optimal_parameters"], int)
    assert isinstance(budget["optimal_tokens"], int)
    assert [option["gpu"] for option in budget["options"]] == ["A100", "V100", "T4"]
    assert budget["design"] is None

    # Each result can be read back into its type, to the last digit.
    for analysis in document["analyses"]:
        assert json.loads(msgspec.json.encode(msgspec.convert(analysis, Analysis))) == analysis
    assert [spent["model"] for spent in budget["models"]] == ["llama_7b", "deepseek_v3"]
    assert [len(spent["readings"]) for spent in budget["models"]] == [1, 2]
    del budget["design"], budget["models"]
    assert json.loads(msgspec.json.encode(msgspec.convert(budget, BudgetPlan))) == budget


def test_json_without_a_budget(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "tiny.json").write_text(json.dumps(DEEPSEEK_V3))
    assert main(["--json", "--model_config", "tiny.json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["budget"] is None
    assert document["analyses"][0]["name"] == "tiny"
    assert document["analyses"][0]["conventions"]["sequence_length_source"] == "max_position_embeddings"


def test_several_models_name_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model_config", "llama_7b", "--model_config", "llama_3_8b", "--seq_len", "16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("Model: ")] == ["Model: llama_7b", "Model: llama_3_8b"]
    assert lines.index("Model: llama_3_8b") == 5


def test_kernel_profiles_differ_in_memory_alone(capsys: pytest.CaptureFixture[str]) -> None:
    analyses = {}
    for kernels in ("fused", "eager"):
        assert main(["--json", "--model_config", "llama_7b_config.json", "--kernels", kernels]) == 0
        (analyses[kernels],) = json.loads(capsys.readouterr().out)["analyses"]
    fused, eager = (analyses[kernels]["layers"][0] for kernels in ("fused", "eager"))
    assert eager["peak_memory_bytes"] > 2 * fused["peak_memory_bytes"]
    assert eager["forward_flops"] == fused["forward_flops"]


# --- Budgets and designs ---------------------------------------------------------------------------------------


def test_budget_in_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--training_budget", "5000000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["best_gpu: A100", "training_budget_flops: 5.616e+23"]
    assert lines[2].startswith("Optimal N: 47476210")
    assert lines[3].startswith("Optimal D: 19715136")
    assert any("1.89696" in line for line in lines)


def test_other_gpus_utilisation_law_and_prices(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--training_budget", "5000000", "--json"]
    assert main([*flags, "--gpus", "H100,H200,B200"]) == 0
    budget = json.loads(capsys.readouterr().out)["budget"]
    assert (budget["best_gpu"], budget["training_flops"]) == ("B200", 27 * 10**23)
    assert main([*flags, "--gpus", "b200", "--mfu", "0.2", "--gpu_prices", "B200=3"]) == 0
    assert json.loads(capsys.readouterr().out)["budget"]["training_flops"] == 27 * 10**23
    assert main([*flags, "--scaling_law", "hoffmann-2022"]) == 0
    assert json.loads(capsys.readouterr().out)["budget"]["scaling_law"] == "hoffmann-2022"


def test_design_is_written_and_can_be_analysed(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    flags = ["--training_budget", "5000000", "--json", "--design", "mine.json"]
    assert main(flags) == 0
    budget = json.loads(capsys.readouterr().out)["budget"]
    design = budget["design"]
    assert main(["--json", "--model_config", "mine.json"]) == 0
    (analysis,) = json.loads(capsys.readouterr().out)["analyses"]
    parameters = analysis["parameters"]["total"]
    assert parameters == design["parameters"]
    assert abs(parameters / budget["optimal_parameters"] - 1) < 0.005
    # The budget is met: one token more would exceed it.
    per_token = -(-3 * analysis["forward_flops"] // analysis["conventions"]["sequence_length"])
    assert design["training_flops_per_token"] == per_token
    assert design["tokens"] * per_token == design["training_flops"] <= budget["training_flops"]
    assert (design["tokens"] + 1) * per_token > budget["training_flops"]
    assert os.listdir(folder) == ["mine.json"]


def test_the_committed_design_is_what_the_command_writes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--training_budget", "5000000", "--design", "my_model_config.json"]) == 0
    assert "A model designed for the budget, written to my_model_config.json" in capsys.readouterr().out
    written = (folder / "my_model_config.json").read_text()
    assert written == (SCRIPT.parent / "configs" / "my_model_config.json").read_text()
    assert read_spec("my_model_config.json").model_type == "llama"


def test_design_replaces_a_file_only_when_forced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mine.json").write_text("precious")
    flags = ["--training_budget", "10000", "--design", "mine.json"]
    assert main(flags) == 2
    assert capsys.readouterr().err == "error: mine.json: exists already; give --force to replace it, or another name\n"
    assert (folder / "mine.json").read_text() == "precious"
    assert main([*flags, "--force"]) == 0
    assert json.loads((folder / "mine.json").read_text())["model_type"] == "llama"


@pytest.mark.parametrize("target", [".", "no_such_folder/mine.json", "a\0b"])
def test_design_cannot_be_written_there(target: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--training_budget", "10000", "--design", target, "--force"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert os.listdir(folder) == []


# --- Runs, comparisons, published bills -------------------------------------------------------------------------

RUN = "--model_config llama_7b --tokens 1T --gpus A100"


def document_of(flags: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["--json", *flags.split()]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_run_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    flags = f"{RUN},H100 --num_gpus 2K --mfu 0.4 --price 2.5 --global_batch_tokens 4M --precision bf16 --optimizer sgd"
    (run,) = document_of(flags, capsys)["runs"]
    assert run["tokens"] == 10**12
    assert run["training_flops"] == 3 * 29_261_612_187_648 * 10**12 // 2048
    assert run["steps"] == 250_000
    assert (run["precision"], run["optimizer"]) == ("bf16", "sgd")
    assert run["model_state_bytes"] == 4 * 6_738_415_616
    assert [gpu["gpu"] for gpu in run["gpus"]] == ["A100", "H100"]
    for gpu in run["gpus"]:
        assert (gpu["num_gpus"], gpu["price_usd_per_hour"]) == (2000, 2.5)
        (outcome,) = gpu["outcomes"]
        assert outcome["mfu"] == 0.4
        assert outcome["cost_usd"] == pytest.approx(2.5 * outcome["gpu_hours"])


def test_a_run_in_text_stands_below_the_analysis(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"{RUN} --gpu_prices A100=1.5".split()) == 0
    out = capsys.readouterr().out
    assert out.index("Number of parameters: 6738415616") < out.index("Forward FLOPs") < out.index("Training llama_7b")
    assert "30.00 %" in out
    assert "50.00 %" in out


def test_published_hours_imply_an_mfu(capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = document_of(f"{RUN} --gpu_hours 82432", capsys)["runs"]
    implied = {entry["convention"]: entry["mfu"] for entry in run["gpus"][0]["implied_mfu"]}
    assert implied.keys() == {"6N", "6N_full_attention", "6N_causal_attention", "own"}
    assert implied["6N"] == pytest.approx(0.4367, abs=1e-4)


def test_mtp_on_and_off(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--model_config deepseek_v3 --seq_len 4096 --tokens 1T --gpus H800 --training_budget 1e6 --mtp"
    on, off = (document_of(f"{flags} {choice}", capsys) for choice in ("on", "off"))
    assert on["runs"][0]["mtp_trained"]
    assert not off["runs"][0]["mtp_trained"]
    assert on["runs"][0]["training_flops"] > off["runs"][0]["training_flops"]
    assert on["budget"]["models"][0]["tokens"] < off["budget"]["models"][0]["tokens"]


def test_a_comparison_takes_the_place_of_its_models(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--compare --model_config llama_7b mixtral_8x7b --seq_len 2048 --tokens 1T --gpus H100"
    comparison = document_of(flags, capsys)["comparison"]
    assert comparison["mfu"] == 0.4
    assert [model["model"] for model in comparison["models"]] == ["llama_7b", "mixtral_8x7b"]
    assert main(flags.split()) == 0
    out = capsys.readouterr().out
    assert "The bill" in out
    assert "Peak memory" not in out


def test_published_and_claim(capsys: pytest.CaptureFixture[str]) -> None:
    document = document_of("--published --claim", capsys)
    assert document["analyses"] == []
    assert {run["name"] for run in document["published"]} >= {"Llama-1 7B", "DeepSeek-V3", "GPT-3 175B", "PaLM 540B"}
    assert all(
        isinstance(flops, int) for run in document["published"] for flops in run["training_flops_per_token"].values()
    )
    assert document["claim"]["total_cost_usd"] == 5_576_000
    assert main(["--published", "--claim"]) == 0
    out = capsys.readouterr().out
    assert out.index("Stated figures, and ours") < out.index("1. The claim")


def test_a_budget_on_a_given_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model_config", "llama_7b", "--training_budget", "5000000"]) == 0
    out = capsys.readouterr().out
    assert "The budget spent on llama_7b" in out
    assert "The scaling law course on it" in out


# --- What the user can mend ------------------------------------------------------------------------------------

BAD_COMMANDS = {
    "": "nothing to do: give --model_config or --training_budget",
    "--model_config no_such.json": "no_such.json: no such file",
    "--model_config .": "must be a file of JSON, but is a folder",
    "--model_config bad.json": "bad.json: num_experts_per_tok = 17: must be at most the number of experts (16)",
    "--model_config": "argument --model_config: expected at least one argument",
    "--model_config llama_7b --seq_len 0": "seq_len = 0: must be a whole number of tokens from 1 to 16777216",
    "--model_config llama_7b --seq_len -5": "--seq_len",
    "--model_config llama_7b --seq_len 4k": "--seq_len = '4k': must be a whole number",
    "--model_config llama_7b --seq_len 99999999999": "seq_len = 99999999999: must be a whole number of tokens from 1",
    "--model_config llama_7b --kernels flash": "argument --kernels: invalid choice: 'flash'",
    "--model_config llama_7b --gpus A100": "--gpus needs --training_budget",
    "--model_config llama_7b --design x.json": "--design needs --training_budget",
    "--model_config no_length.json": "max_position_embeddings = null: is missing, and so is max_sequence_length",
    "--training_budget abc": "--training_budget = 'abc': must be a number of US dollars",
    "--training_budget -5": "--training_budget",
    "--training_budget=-5": "training_budget = -5",
    "--training_budget 0": "training_budget = 0",
    "--training_budget nan": "training_budget = nan",
    "--training_budget inf": "training_budget = inf",
    "--training_budget 1e400": "training_budget = inf",
    "--training_budget 5000000 --gpus K80": "unknown GPU 'K80': choose from V100",
    "--training_budget 5000000 --gpus A100,A100": "twice",
    "--training_budget 5000000 --gpus MI300X": "no price is known for MI300X",
    "--training_budget 5000000 --gpus=": "must be GPU names separated by commas",
    "--training_budget 5000000 --mfu 0": "mfu = 0",
    "--training_budget 5000000 --mfu 1.01": "mfu = 1.01: must be a number above 0 and at most 1",
    "--training_budget 5000000 --mfu 40%": "--mfu = '40%'",
    "--training_budget 5000000 --mfu nan": "mfu = nan",
    "--training_budget 5000000 --scaling_law chinchilla": "unknown scaling law 'chinchilla': choose from course",
    "--training_budget 5000000 --gpu_prices A100": "must be GPU=price pairs",
    "--training_budget 5000000 --seq_len 8": "--seq_len needs --model_config",
    "--training_budget 5000000 --force": "--force needs --design",
    "--training_budget 5000000 --num_gpus 8": "--num_gpus needs --tokens",
    "--training_budget 5000000 --price 2": "--price needs --gpus",
    "--tokens 15T --gpus H100": "--tokens needs --model_config",
    "--compare --model_config llama_7b llama_3_8b": "--compare needs --tokens",
    "--model_config llama_7b --gpu_hours 5": "--gpu_hours needs --tokens",
    "--model_config llama_7b --global_batch_tokens 5": "--global_batch_tokens needs --tokens",
    "--model_config llama_7b --tokens 15T": "--tokens needs --gpus: say what to train on",
    "--training_budget 5 --mtp off": "--mtp needs --model_config",
    "--model_config llama_7b --loss_chunk 1": "loss_chunk = 1: makes 2048 chunks of 2048 tokens, and may make 256",
    "--model_config llama_7b --mtp on": "mtp = on: llama_7b has no multi-token prediction",
    "--model_config llama_7b --mtp maybe": "argument --mtp: invalid choice: 'maybe'",
    f"{RUN} --compare": "--compare needs two models or more",
    f"{RUN} --model_config llama_3_8b --compare --gpu_hours 1M": "--compare takes no --gpu_hours",
    f"{RUN},H100 --model_config llama_3_8b --compare": "--compare needs one GPU, but --gpus names 2: A100, H100",
    "--model_config llama_7b --tokens 15TT --gpus A100": "--tokens = '15TT': must be a whole number of tokens",
    "--model_config llama_7b --tokens 1e400 --gpus A100": "--tokens = '1e400': must be",
    "--model_config llama_7b --tokens=-1T --gpus A100": "--tokens = '-1T': must be",
    "--model_config llama_7b --tokens 0 --gpus A100": "--tokens = '0': must be",
    "--model_config llama_7b --tokens nan --gpus A100": "--tokens = 'nan': must be",
    "--model_config llama_7b --tokens 1T --gpus K80": "unknown GPU 'K80': choose from",
    "--model_config llama_7b --tokens 1T --gpus A100,a100": "names A100 twice",
    "--model_config llama_7b --tokens 1T --gpus L4": "no price is known for L4: give one in US dollars per hour",
    f"{RUN} --price 0": "--price = 0.0: must be a number of US dollars",
    f"{RUN} --price cheap": "--price = 'cheap': must be a number of US dollars",
    f"{RUN} --price 2 --gpu_prices A100=2": "give either --price, for every GPU, or --gpu_prices",
    f"{RUN} --gpu_prices H100=2": "a price is given for H100, but the GPUs considered are A100",
    f"{RUN} --num_gpus 0": "--num_gpus = '0': must be a whole number of GPUs from 1",
    f"{RUN} --num_gpus 1.5": "--num_gpus = '1.5': must be a whole number of GPUs",
    f"{RUN} --mfu 1.5": "mfu = 1.5: must be a number above 0 and at most 1",
    f"{RUN} --mfu 0.4 --gpu_hours 1M": "--gpu_hours says what the MFU was: leave out --mfu",
    f"{RUN} --gpu_hours 0": "--gpu_hours = '0': must be a number of hours above 0",
    f"{RUN} --gpu_hours 100": "--gpu_hours = 100: the claim is impossible",
    f"{RUN} --global_batch_tokens 2T": "global_batch_tokens = 2000000000000: must be at most tokens (1000000000000)",
    f"{RUN} --global_batch_tokens x": "--global_batch_tokens = 'x': must be a whole number of tokens",
    f"{RUN} --precision fp4": "unknown precision 'fp4': choose from mixed",
    f"{RUN} --optimizer lion": "unknown optimizer 'lion': choose from adamw",
    "--model_config deepseek_v3 --training_budget 0.01 --gpus T4 --mfu 1e-6": "do not pay for one token",
    "--budget 5000000": "unrecognized arguments: --budget",
    "--training_budget 5 --design x.json": "x.json",
}


@pytest.mark.parametrize(("flags", "message"), BAD_COMMANDS.items(), ids=BAD_COMMANDS.keys())
def test_one_line_and_exit_2(flags: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.json").write_text(json.dumps(DEEPSEEK_V3 | {"num_experts_per_tok": 17}))
    no_length = {field: value for field, value in LLAMA.items() if field != "max_position_embeddings"}
    (folder / "no_length.json").write_text(json.dumps(no_length))
    if flags.endswith("--design x.json") and "budget 5" in flags:
        message = "cannot design a model"
    assert main(flags.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert "x.json" not in os.listdir(folder)


def test_a_function_for_one_family_refuses_the_other() -> None:
    from model_training_cost_analysis import model_training_cost_analysis_llama

    with pytest.raises(
        ValueError, match=r"deepseek_v3_config\.json: model_type = 'deepseek_v3': this function is for llama"
    ):
        model_training_cost_analysis_llama("deepseek_v3_config.json")


# --- As a process ----------------------------------------------------------------------------------------------


def test_exit_3_where_module_and_formula_differ(capsys: pytest.CaptureFixture[str]) -> None:
    right = analytic.parameters.dispatch(GatedMLPSpec)
    analytic.parameters.register(GatedMLPSpec, lambda spec: right(spec) + Counts(mlp=1))
    try:
        assert main(["--model_config", "llama_7b_config.json", "--json"]) == 3
    finally:
        analytic.parameters.register(GatedMLPSpec, right)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "parameters, dense layer, mlp: measured 135,266,304 differs from formula 135,266,305, by -1" in captured.err


def test_as_a_process_from_another_folder(tmp_path: Path) -> None:
    done = run("--model_config", "llama_7b_config.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Number of parameters: 6738415616\n")


def test_a_bad_flag_as_a_process(tmp_path: Path) -> None:
    done = run("--training_budget", "x", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--training_budget", "5000000"],
        stdout=writer,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    os.close(writer)
    _, errors = process.communicate(timeout=60)
    assert errors == b""


COMMAND = "import sys; sys.argv[1:] = {arguments!r}; from model_training_cost_analysis import command; command()"


def run_command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """The installed command's entry point, with `options` of subprocess.run."""
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent)} | options.pop("env", {})
    code = COMMAND.format(arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", code], env=environment, timeout=120, check=False, **options)


def test_the_entry_point_is_the_command() -> None:
    project = tomllib.loads((SCRIPT.parent / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"model-training-cost-analysis": "model_training_cost_analysis:command"}
    assert project["version"] == VERSION


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_output_without_our_characters(encoding: str) -> None:
    flags = ("--model_config", "llama_7b", "--training_budget", "5000000")
    done = run_command(*flags, capture_output=True, env={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"Number of parameters: 6738415616")


def test_warnings_as_errors_stop_nothing() -> None:
    done = run_command("--model_config", "llama_7b", "--json", capture_output=True, env={"PYTHONWARNINGS": "error"})
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line_and_exit_2() -> None:
    with open("/dev/full", "w") as full:
        done = run_command("--training_budget", "5000000", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr == b"error: the output cannot be written: No space left on device\n"


def test_a_closed_output_is_no_error(tmp_path: Path) -> None:
    shell = f"{sys.executable} {SCRIPT} --training_budget 5000000 >&- 2>err; echo $?; wc -c <err"
    done = subprocess.run(["sh", "-c", shell], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["0", "0"]


def test_head_has_seen_enough(tmp_path: Path) -> None:
    shell = f"{{ {sys.executable} {SCRIPT} --model_config llama_7b; echo $? >status; }} | head -1"
    done = subprocess.run(["sh", "-c", shell], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == ("Number of parameters: 6738415616\n", "")
    assert (tmp_path / "status").read_text() == "0\n"


def test_design_replaces_no_pipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "real.json").write_text("precious")
    (folder / "link.json").symlink_to(folder / "real.json")
    for name in ("pipe", "link.json"):
        assert main(["--training_budget", "10000", "--design", name, "--force"]) == 2
        assert capsys.readouterr().err == f"error: {name}: is no regular file, and is not replaced\n"
    assert (folder / "pipe").is_fifo()
    assert (folder / "real.json").read_text() == "precious"


def test_a_replaced_file_keeps_its_permissions(folder: Path) -> None:
    path = folder / "mine.json"
    path.write_text("old")
    path.chmod(0o600)
    assert main(["--training_budget", "10000", "--design", "mine.json", "--force", "--json"]) == 0
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_budget_does_not_import_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from model_training_cost_analysis import main; main(['--training_budget', '5000000']);"
        "print(sorted({'torch', 'fvcore', 'numpy'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_number_of_layers_does_not_matter() -> None:
    """One layer of each kind is measured, however many there are; of multi-token prediction too."""
    from counting.measured import _Measurement

    for layers in (61, 6100):
        fields = DEEPSEEK_V3 | {"num_hidden_layers": layers, "num_nextn_predict_layers": layers // 100 + 1}
        measurement = _Measurement(spec_from_fields(fields, "deep"), 16, "fused")
        assert (len(measurement.module.model.layers), len(measurement.mtp_layers)) == (2, 1)
