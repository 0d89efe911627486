"""A step that is spread over ranks, from the flags to the report; the numbers have their own tests."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from counting.analysis import analyze
from counting.cost.fits import fits_on
from counting.cost.hardware import find_gpu
from counting.setup import Setup
from model_training_cost_analysis import main
from tests.shrunken import LLAMA, MISTRAL
from torch_models.layout import Layout


@pytest.fixture(autouse=True)
def configs(folder: Path) -> None:
    (folder / "own.json").write_text(json.dumps(LLAMA))
    (folder / "other.json").write_text(json.dumps(MISTRAL))


def document_of(flags: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["--json", *flags.split()]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_the_flags_say_what_the_library_does(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--model_config own.json --layout fsdp=3,zero=2,grouping=layers --num_gpus 6 --micro_batches 2 --gpus L4"
    (found,) = document_of(flags, capsys)["analyses"]
    layout = Layout(num_gpus=6, gpus_per_node=8, dp=2, fsdp=3, zero=2, grouping="layers")
    analysis = analyze("own.json", Setup(micro_batches=2), layout=layout)
    assert found["layout"] == json.loads(msgspec.json.encode(layout))
    assert found["rank_classes"] == json.loads(msgspec.json.encode(analysis.rank_classes))
    assert found["fits"] == json.loads(msgspec.json.encode(fits_on(analysis, [find_gpu("L4")])))
    assert sum(ranks["count"] for ranks in found["rank_classes"]) == 6
    assert found["fits"][0]["allocated_bytes"] == max(each["memory"]["peak_bytes"] for each in found["rank_classes"])
    assert any(check["scope"] == "rank class" for check in found["agreement"]["checks"])


def test_without_a_layout_there_are_no_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = document_of("--model_config own.json --gpus L4", capsys)["analyses"]
    assert (found["layout"], found["rank_classes"], found["fits"][0]["rank"]) == (None, None, None)


def test_the_document_is_a_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = document_of("--model_config own.json --layout fsdp=2,dp=2 --gpus_per_node 4", capsys)
    (folder / "before.json").write_text(json.dumps(document))
    assert document_of("--plan before.json", capsys) == document


@pytest.mark.parametrize("more", ["", "--gpus H100,T4", "--gpus H100 --tokens 1B", "--model_config other.json"])
def test_it_is_one_screen(more: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(f"--model_config own.json --layout fsdp=4 --num_gpus 8 {more}".split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 30 + 10 * ("other.json" in more)
    assert [line for line in lines if len(line) > 80 or line != line.rstrip()] == []
    assert sum("spread over 8 GPUs" in line for line in lines) == 1 + ("other.json" in more)


def test_a_run_counts_the_tokens_of_all_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--model_config own.json --layout fsdp=4,tp=2 --tokens 1M --gpus H100 --micro_batches 3 --seq_len 32"
    (run,) = document_of(flags, capsys)["runs"]
    assert (run["gpus"][0]["num_gpus"], run["global_batch_tokens"]) == (8, 4 * 3 * 32)


def test_details_and_proof(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["--model_config", "own.json", "--layout", "fsdp=4", "--details", "--proof"]) == 0
    out = capsys.readouterr().out
    analysis = analyze("own.json", layout=Layout(fsdp=4))
    (ranks,) = analysis.rank_classes or ()
    for number in (ranks.memory.peak_bytes, ranks.parameters, ranks.hardware_flops, ranks.collectives[0].bytes_out):
        assert f"{number:,}" in out
    assert "ranks measured = ranks by formula" in out
    assert "sum over ranks = undivided model" in out
