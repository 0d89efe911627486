"""The command on families without modules here: what it prints, and what it refuses of a training step."""

import json
from pathlib import Path

import pytest

from model_training_cost_analysis import main
from tests.foreign_families import FAMILIES, PHI3, SMALL


def test_a_training_step_has_a_bill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """FLOPs, memory and the resources of a run, whatever the recipe; what needs modules of this project is refused."""
    config = tmp_path / "small.json"
    config.write_text(json.dumps(PHI3))
    flags = ["--model_config", str(config), "--seq_len", "32", "--json"]
    run = ("--tokens", "1M", "--gpus", "H100")
    steps = {
        (): "none",
        ("--recompute", "full", "--micro_batches", "2", "--precision", "fp32", "--optimizer", "sgd"): "full",
        (*run, "--loss_chunk", "8", "--clip_gradients", "on", "--zero_gradients", "in_place"): "none",
        ("--training_budget", "100", "--recompute", "selective"): "selective",
    }
    for more, recompute in steps.items():
        assert main([*flags, *more]) == 0
        document = json.loads(capsys.readouterr().out)
        (analysis,) = document["analyses"]
        assert analysis["setup"]["recompute"] == recompute
        assert analysis["training"]["model_flops"] == 3 * analysis["training"]["forward_flops"]
        assert analysis["memory"]["proof"] == analysis["proof"] == "measured, no formula"
        assert analysis["memory"]["peak_bytes"] > analysis["memory"]["states"]["weights"]
    refused = [("--reserved", "on"), ("--layout", "fsdp=2"), ("--execution", "compiled")]
    for more in refused:
        assert main([*flags, *more]) == 2
        said = (
            f"{config}: phi3 goes through transformers, where a step is measured on one device, without allocator and"
        )
        assert capsys.readouterr().err == f"error: {said} time: leave out {more[0]}\n"


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small_config.json"
    path.write_text(json.dumps({"model_type": "starcoder2"} | SMALL | {"bos_token_id": 50256}))
    assert main(["--model_config", str(path), "--details"]) == 0
    captured = capfd.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == [
        "Number of parameters",
        "Number of TFLOPs",
        "Peak memory cost",
    ]
    text = " ".join(captured.out.split())
    assert "measured, no formula" in text.lower()
    assert "5 numbers: trace = dispatch" in text
    assert "measured = formula" not in text
    assert "Starcoder2ForCausalLM of transformers" in text

    path.write_text(json.dumps({"model_type": "falcon"} | FAMILIES["falcon"][0]))
    assert main(["--model_config", str(path)]) == 0
    out = capfd.readouterr().out
    assert "Peak memory cost: not measured" in out
    assert "kernels" not in out.partition("Parameters")[0]

    path.write_text(json.dumps({"model_type": "bert"}))
    assert main(["--model_config", str(path)]) == 2
    assert capfd.readouterr().err.startswith(f"error: {path}: model_type = 'bert': is an encoder")
