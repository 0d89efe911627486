"""A step that is spread over ranks, from the flags to the report; the numbers have their own tests."""

import json
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest

from counting.analysis import analyze
from counting.cost.fits import fits_on
from counting.cost.hardware import find_gpu
from counting.setup import Setup
from counting.step.memory import TAKES_LONG_NOTE
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
    analysis = analyze("own.json", Setup(micro_batches=2), layout=layout, reserved=True)
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


@pytest.mark.parametrize(
    ("flags", "reserved"),
    [
        ("", False),
        ("--gpus L4", True),
        ("--layout fsdp=2", True),
        ("--gpus L4 --reserved off", False),
        ("--layout fsdp=2 --reserved off", False),
        ("--reserved on", True),
        ("--expandable_segments", True),
        ("--gpus H100 --tokens 1B", False),
        ("--gpus H100 --training_budget 5M", False),
        ("--gpus L4 --micro_batches 3 --seq_len 8", True),
    ],
)
def test_where_reserved_is_estimated(flags: str, reserved: bool, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = document_of(f"--model_config own.json {flags}", capsys)["analyses"]
    memories = [each["memory"] for each in found["rank_classes"] or [found]]
    assert any(memory["reserved_bytes"] is not None for memory in memories) is reserved
    for fit in found["fits"] or ():
        assert fit["basis"] == ("reserved" if reserved else "allocated")
        step = fit["reserved_bytes"] if reserved else fit["allocated_bytes"]
        assert fit["needed_bytes"] == step + fit["context_bytes"] + fit["communicator_bytes"]
    assert found["setup"]["expandable_segments"] is ("--expandable_segments" in flags)


def test_by_default_not_where_it_takes_long(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "deep.json").write_text(json.dumps(LLAMA | {"num_hidden_layers": 129}))
    (found,) = document_of("--model_config deep.json --gpus L4 --seq_len 8", capsys)["analyses"]
    assert found["memory"]["reserved_bytes"] is None
    assert found["memory"]["notes"][-1] == TAKES_LONG_NOTE
    for flags, shown in (
        ("--gpus L4", "allocator's reserve, which takes long here"),
        ("--layout fsdp=2", "left out: the"),
    ):
        assert main(["--model_config", "deep.json", "--seq_len", "8", *flags.split()]) == 0
        assert shown in " ".join(capsys.readouterr().out.split())


def test_compiled_layers_ask_for_it_where_it_takes_long(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "deep.json").write_text(json.dumps(LLAMA | {"num_hidden_layers": 129}))
    (found,) = document_of("--model_config deep.json --execution compiled --seq_len 8", capsys)["analyses"]
    assert found["memory"]["reserved_bytes"] is not None


def test_a_rank_needs_its_communicators_too(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = document_of("--model_config own.json --layout fsdp=2,tp=2 --gpus H100 --reserved off", capsys)[
        "analyses"
    ]
    of_one = find_gpu("H100").communicator_bytes
    assert of_one
    assert found["fits"][0]["communicator_bytes"] == 2 * of_one


def test_a_memory_trace(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model_config", "own.json", "--layout", "fsdp=2", "--trace_memory", "trace.pickle"]
    assert main(flags) == 0
    snapshot = pickle.loads((folder / "trace.pickle").read_bytes())
    streams = {entry["stream"] for entry in snapshot["device_traces"][0]}
    assert len(streams) == 3
    capsys.readouterr()
    assert main(flags) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*flags, "--force"]) == 0


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ("--gpus L4 --reserved off --expandable_segments", "--expandable_segments is of what the allocator reserves"),
        ("--reserved off --trace_memory t.pickle", "--trace_memory is of what the allocator reserves"),
        ("--trace_memory missing/t.pickle", "there is no folder missing"),
        ("--trace_memory t.pickle --precision fp8", "--precision = 'fp8': runs on no meta device"),
        ("--trace_memory t.pickle --optimizer adamw-8bit", "--optimizer = 'adamw-8bit': runs on no meta device"),
        ("other.json --trace_memory t.pickle", "--trace_memory writes one file"),
    ],
)
def test_errors_of_reserved_are_one_line(
    flags: str, error: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(f"--model_config own.json {flags}".split()) == 2
    captured = capsys.readouterr()
    assert error in captured.err
    assert captured.err.count("\n") == 1
    assert not (folder / "t.pickle").exists()


def test_the_screen_says_what_is_reserved(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model_config", "own.json", "--gpus", "L4"]) == 0
    out = capsys.readouterr().out
    assert "GiB by torch's allocator, an estimate; allocated" in " ".join(out.split())
    assert "what the allocator reserves at most" in out
    assert main(["--model_config", "own.json", "--gpus", "L4", "--reserved", "off"]) == 0
    assert "left out: workspaces in kernels, the allocator's reserve" in " ".join(capsys.readouterr().out.split())
