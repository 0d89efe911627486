"""The command as a user types it: what it prints, and what it writes."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from counting.analysis import Analysis
from counting.cost.budget import BudgetPlan
from model_training_cost_analysis import main
from tests.shrunken import DEEPSEEK_V3
from torch_models.fields.config import read_spec

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


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
    assert "Forward FLOPs of one sequence" not in captured.out


@pytest.mark.parametrize("flag", ["--details", "--proof"])
def test_details_and_proof_stand_below_the_first_screen(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model_config", "llama_7b_config.json"]) == 0
    first_screen = capsys.readouterr().out
    assert main(["--model_config", "llama_7b_config.json", flag]) == 0
    out = capsys.readouterr().out
    assert out.startswith(first_screen)
    assert ("Forward FLOPs of one sequence" in out) is (flag == "--details")
    assert ("11 numbers: numel = formula" in out) is (flag == "--proof")


def test_deepseek_v3_speaks_of_the_moe_layer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model_config", "deepseek_v3_config.json", "--details"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[:2] == ["Number of parameters: 671026404352", "Number of TFLOPs: 6.169183649792"]
    assert "moe layer × 58" in out
    for figure in ("6,154,151,264,256", "37,552,282,624", "14,848", "11,610,067,968"):
        assert figure in out


def test_json_is_one_document_and_lossless(capsys: pytest.CaptureFixture[str]) -> None:
    configs = ["llama_7b_config.json", "deepseek_v3_config.json"]
    assert main(["--json", "--model_config", *configs, "--seq_len", "2048", "--training_budget", "5e6"]) == 0
    document = json.loads(capsys.readouterr().out)
    asked_for = {"schema_version", "plan", "analyses", "budget"}
    not_asked_for = {"comparison": None, "fit": None, "published": None, "claim": None}
    assert document.keys() == {*asked_for, *not_asked_for, "runs", "warnings"}
    assert {key: document[key] for key in not_asked_for} == not_asked_for
    assert (document["runs"], document["warnings"]) == ([], [])
    assert document["schema_version"] == 2
    assert [analysis["name"] for analysis in document["analyses"]] == ["llama_7b", "deepseek_v3"]

    deepseek = document["analyses"][1]
    assert deepseek["model_type"] == "deepseek_v3"
    assert deepseek["setup"] == {
        "sequence_length": 2048,
        "sequence_length_source": "given",
        "micro_batch_size": 1,
        "micro_batches": 1,
        "global_batch_tokens": None,
        "kernels": "fused",
        "recompute": "none",
        "precision": "mixed",
        "optimizer": "adamw",
        "mtp": True,
        "loss_chunk": None,
        "execution": "eager",
        "clip_gradients": False,
        "zero_gradients": "none",
        "expandable_segments": False,
        "measured_dtype": "bfloat16",
    }
    assert document["analyses"][0]["setup"] == deepseek["setup"] | {"mtp": False}
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
    assert {"numel", "trace", "dispatch", "formula", "simulation"} == set(deepseek["agreement"]["witnesses"])
    for check in deepseek["agreement"]["checks"]:
        assert check.keys() == {"quantity", "scope", "component", "values"}
        assert check["values"].keys() <= set(deepseek["agreement"]["witnesses"])
        assert len(set(check["values"].values())) == 1

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
    assert budget["laws"] is None
    assert (budget["data_limited"], budget["inference_aware"]) == (None, None)
    assert [model["model"] for model in budget["mixture"]["models"]] == ["deepseek_v3"]
    for beside in ("laws", "design", "models", "data_limited", "inference_aware", "mixture"):
        del budget[beside]
    assert json.loads(msgspec.json.encode(msgspec.convert(budget, BudgetPlan))) == budget


def test_json_without_a_budget(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "tiny.json").write_text(json.dumps(DEEPSEEK_V3))
    assert main(["--json", "--model_config", "tiny.json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["budget"] is None
    assert document["analyses"][0]["name"] == "tiny"
    assert document["analyses"][0]["setup"]["sequence_length_source"] == "max_position_embeddings"


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
    assert main(["--training_budget", "$5M", "--num_gpus", "256"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["best_gpu: A100", "training_budget_flops: 5.616e+23"]
    assert lines[2].startswith("Optimal N: 47476210")
    assert lines[3].startswith("Optimal D: 19715136")
    assert any("203 on 256 A100" in line for line in lines)


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
    per_token = -(-3 * analysis["forward_flops"] // analysis["setup"]["sequence_length"])
    assert design["training_flops_per_token"] == per_token
    assert design["tokens"] * per_token == design["training_flops"] <= budget["training_flops"]
    assert (design["tokens"] + 1) * per_token > budget["training_flops"]
    assert os.listdir(folder) == ["mine.json"]


def test_a_mixture_is_written_and_can_be_analysed(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    flags = ["--training_budget", "50k", "--json", "--design", "mine.json", "--design_family", "DeepSeek_V3"]
    assert main(flags) == 0
    budget = json.loads(capsys.readouterr().out)["budget"]
    design = budget["design"]
    assert (design["family"], design["sized_by"]) == ("deepseek_v3", "active")
    assert main(["--json", "--model_config", "mine.json", "--training_budget", "50k"]) == 0
    document = json.loads(capsys.readouterr().out)
    (analysis,), (spent,) = document["analyses"], document["budget"]["models"]
    assert analysis["model_type"] == "deepseek_v3"
    for ours, theirs in (("parameters", "total"), ("active_parameters", "active"), ("mtp_parameters", "mtp")):
        assert design[ours] == analysis["parameters"][theirs]
    assert abs(design["active_parameters"] / budget["optimal_parameters"] - 1) < 0.005
    # The same budget on the file: as many tokens, and the same readings of both laws.
    assert design["tokens"] == spent["tokens"]
    (active,) = (reading for reading in spent["readings"] if reading["taken_as"] == "active")
    assert design["predicted_loss"] == active["predicted_loss"]
    assert design["mixture"] == document["budget"]["mixture"]["models"][0]


def test_the_committed_design_is_what_the_command_writes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--training_budget", "5000000", "--design", "my_model_config.json"]) == 0
    assert "my_model_config.json" in capsys.readouterr().out
    written = (folder / "my_model_config.json").read_text()
    assert written == (CONFIGS / "my_model_config.json").read_text()
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


def test_design_replaces_no_pipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "real.json").write_text("precious")
    (folder / "link.json").symlink_to(folder / "real.json")
    for name in ("pipe", "link.json"):
        assert main(["--training_budget", "10000", "--design", name, "--force"]) == 2
        assert capsys.readouterr().err == f"error: {name}: is not a regular file, and is not replaced\n"
    assert (folder / "pipe").is_fifo()
    assert (folder / "real.json").read_text() == "precious"


def test_a_replaced_file_keeps_its_permissions(folder: Path) -> None:
    path = folder / "mine.json"
    path.write_text("old")
    path.chmod(0o600)
    assert main(["--training_budget", "10000", "--design", "mine.json", "--force", "--json"]) == 0
    assert path.stat().st_mode & 0o777 == 0o600


# --- Runs, comparisons, published bills -------------------------------------------------------------------------

RUN = "--model_config llama_7b --tokens 1T --gpus A100"


def document_of(flags: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["--json", *flags.split()]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_run_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    flags = (
        f"{RUN},H100 --num_gpus 2K --mfu 0.4 --price 2.5 --global_batch_tokens 4096000 --precision bf16 --optimizer sgd"
    )
    (run,) = document_of(flags, capsys)["runs"]
    assert run["tokens"] == 10**12
    assert run["training_flops"] == 3 * 29_261_612_187_648 * 10**12 // 2048
    assert run["steps"] == 244_141
    assert run["global_batch_tokens"] == 4_096_000
    assert (run["precision"], run["optimizer"]) == ("bf16", "sgd")
    assert run["model_state_bytes"] == 4 * 6_738_415_616
    assert [gpu["gpu"] for gpu in run["gpus"]] == ["A100", "H100"]
    for gpu in run["gpus"]:
        assert (gpu["num_gpus"], gpu["price_usd_per_hour"]) == (2000, 2.5)
        (outcome,) = gpu["outcomes"]
        assert outcome["mfu"] == 0.4
        assert outcome["cost_usd"] == pytest.approx(2.5 * outcome["gpu_hours"])


def test_a_run_in_text_stands_above_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"{RUN} --gpu_prices A100=1.5".split()) == 0
    out = capsys.readouterr().out
    assert out.index("Number of parameters: 6738415616") < out.index("Training llama_7b") < out.index("\nllama_7b")
    assert main(f"{RUN} --gpu_prices A100=1.5 --details".split()) == 0
    details = capsys.readouterr().out.removeprefix(out)
    assert details.index("Forward FLOPs") < details.index("Training llama_7b")
    assert "30.00 %" in details
    assert "50.00 %" in details


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
    assert out.startswith("Training on 1 T tokens with H100")
    assert "Peak memory" not in out
    assert main([*flags.split(), "--details"]) == 0
    assert "The bill" in capsys.readouterr().out.removeprefix(out)


def test_published_and_claim(capsys: pytest.CaptureFixture[str]) -> None:
    document = document_of("--published --claim", capsys)
    assert document["analyses"] == []
    assert {run["name"] for run in document["published"]} >= {"Llama-1 7B", "DeepSeek-V3", "GPT-3 175B", "PaLM 540B"}
    assert all(
        isinstance(flops, int) for run in document["published"] for flops in run["training_flops_per_token"].values()
    )
    assert document["claim"]["total_cost_usd"] == 5_576_000
    assert document_of("--claim --published bills", capsys)["published"] == document["published"]
    assert main(["--published", "--claim"]) == 0
    out = capsys.readouterr().out
    assert out.index("22 published runs") < out.index("Was DeepSeek-V3 trained for")
    assert main(["--published", "--claim", "--details"]) == 0
    out = capsys.readouterr().out
    assert out.index("Stated figures, and ours") < out.index("1. The claim")


def test_a_budget_on_a_given_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model_config", "llama_7b", "--training_budget", "5000000", "--details"]) == 0
    out = capsys.readouterr().out
    assert "The budget spent on llama_7b" in out
    assert "The scaling law course applied to it" in out
