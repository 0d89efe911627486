"""The table and the JSON of a training step's memory."""

import json
from pathlib import Path

import msgspec
import pytest

from counting.analysis import Analysis, analyze
from counting.report.model.step_memory import step_memory_table
from counting.setup import Setup
from counting.step.phase import PARTS
from model_training_cost_analysis import main
from tests.shrunken import DEEPSEEK_V3, LLAMA
from torch_models.fields.config import spec_from_fields


@pytest.fixture(scope="module")
def small() -> Analysis:
    return analyze(spec_from_fields(LLAMA, "small"), Setup(sequence_length=16))


WAYS = [
    "--recompute full",
    "--recompute selective --precision mixed-fp32-gradients",
    "--loss_chunk 7 --mtp off",
    "--precision fp8 --optimizer muon",
    "--precision fp32 --optimizer sgd --clip_gradients on",
    "--optimizer adamw-8bit --clip_gradients off",
    "--optimizer adafactor --precision bf16 --clip_gradients on",
]


@pytest.mark.parametrize("flags", WAYS)
def test_json_and_table_say_the_same(flags: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "small.json"
    config.write_text(json.dumps(DEEPSEEK_V3))
    assert main(["--model_config", str(config), "--json", *flags.split()]) == 0
    (analysis,) = json.loads(capsys.readouterr().out)["analyses"]
    memory = analysis["memory"]
    peaks = {phase["name"]: sum(phase[part] for part in PARTS) for phase in memory["phases"]}
    assert max(peaks, key=lambda name: peaks[name]) == memory["peak_phase"]
    assert peaks[memory["peak_phase"]] == memory["peak_bytes"]
    assert analysis["setup"]["clip_gradients"] is ("--clip_gradients on" in flags) is ("gradient clipping" in peaks)
    assert analysis["setup"]["mtp"] is (flags != "--loss_chunk 7 --mtp off")
    assert any(check["quantity"] == "step_memory_bytes" for check in analysis["agreement"]["checks"])
    assert main(["--model_config", str(config), "--details", *flags.split()]) == 0
    printed = " ".join(capsys.readouterr().out.split())  # a title may be broken into lines
    assert f"the peak is in the {memory['peak_phase']}" in printed
    for number in (memory["peak_bytes"], memory["states"]["weights"]):
        assert f"{number:,}" in printed
    assert "…│" not in printed


def test_each_analysis_has_a_step_without_being_asked(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--model_config llama_7b deepseek_v3 --seq_len 128 --json --tokens 1B --gpus H100 --training_budget 100"
    for more in ("", " --compare"):
        assert main((flags + more).split()) == 0
        document = json.loads(capsys.readouterr().out)
        for index, analysis in enumerate(document["analyses"]):
            if document["comparison"]:
                compared = document["comparison"]["models"][index]
                assert compared["step_peak_bytes"] == analysis["memory"]["peak_bytes"]
            assert analysis["setup"]["recompute"] == "none"
            assert analysis["setup"]["precision"] == "mixed"
            assert analysis["setup"]["mtp"] == (analysis["name"] == "deepseek_v3")


@pytest.mark.parametrize("optimizer", ["muon", "adafactor", "adamw-8bit"])
def test_a_run_and_a_step_are_run_alike(optimizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--model_config llama_7b deepseek_v3 --seq_len 128 --json --tokens 1B --gpus H100"
    flags += f" --precision mixed-fp32-gradients --optimizer {optimizer}"
    assert main(flags.split()) == 0
    document = json.loads(capsys.readouterr().out)
    for analysis, run in zip(document["analyses"], document["runs"], strict=True):
        assert analysis["setup"]["mtp"] == run["mtp_trained"] == (analysis["name"] == "deepseek_v3")
        assert analysis["setup"]["precision"] == run["precision"] == "mixed-fp32-gradients"
        states = analysis["memory"]["states"]
        assert sum(states.values()) == run["model_state_bytes"]


def test_the_caption_has_the_span_of_the_layers(small: Analysis) -> None:
    assert small.memory is not None
    memory = msgspec.structs.replace(small.memory, layer_backward_peak_bytes=(3 * 10**9, 10**9, 2 * 10**9))
    assert "the peak of backward lies between 1.0 and 3.0 GB" in str(step_memory_table(memory, small.setup).caption)


def test_a_peak_in_a_layer_names_it(small: Analysis) -> None:
    assert small.memory is not None
    backward = small.memory.phases[2]
    memory = msgspec.structs.replace(small.memory, peak_phase=backward.name)
    assert str(step_memory_table(memory, small.setup).title).endswith(
        f"the backward of a layer, layer {backward.layer} (dense)"
    )
