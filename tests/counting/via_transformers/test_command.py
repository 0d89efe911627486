"""The command on families without modules here: what it prints, and what it refuses of a training step."""

import json
from pathlib import Path

import pytest

from model_training_cost_analysis import main
from tests.foreign_families import FAMILIES, GPT2, SMALL


def test_no_training_step_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "small.json"
    config.write_text(json.dumps(GPT2 | {"model_type": "gpt_bigcode"}))
    flags = ["--model_config", str(config), "--seq_len", "32", "--json"]
    # Precision and optimiser are a run's too.
    run = ("--tokens", "1M", "--gpus", "H100", "--precision", "fp32", "--optimizer", "sgd", "--mtp", "off")
    budget = ("--training_budget", "100")
    for more in ((), run, (*budget, "--mtp", "off"), ("--mtp", "off")):
        assert main([*flags, *more]) == 0
        (analysis,) = json.loads(capsys.readouterr().out)["analyses"]
        assert analysis["training"] is analysis["memory"] is None
    precision = ("--precision", "fp32")
    refused = [("--recompute", "none"), ("--loss_chunk", "8"), precision, (*budget, *precision), ("--optimizer", "sgd")]
    refused.append(("--clip_gradients", "off"))
    for more in (*refused, (*run, "--recompute", "full")):
        assert main([*flags, *more]) == 2
        expected = f"{config}: gpt_bigcode goes through transformers, and no training step of it is measured: leave out"
        assert capsys.readouterr().err == f"error: {expected} {more[-2]}\n"


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
