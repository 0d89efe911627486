"""The sequence length where none is given: a warning of a long one, and one for all models that are compared."""

import json
from pathlib import Path
from typing import Any

import pytest

from model_training_cost_analysis import main
from tests.foreign_families import PHI3
from tests.shrunken import DEEPSEEK_V3, LLAMA

LONG = "tiny: 8,193 tokens a sequence (max_position_embeddings), perhaps more than it is trained at"


def document_of(flags: str, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    assert main(["--json", *flags.split()]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def config(length: int, fields: dict[str, Any] = LLAMA) -> str:
    return json.dumps(fields | {"max_position_embeddings": length})


@pytest.mark.parametrize(("length", "warned"), [(8192, False), (8193, True)])
def test_above_8192_tokens_nobody_asked_for(
    length: int, warned: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tiny.json").write_text(config(length))
    document, errors = document_of("--model_config tiny.json", capsys)
    assert len(document["warnings"]) == errors.count("\n") == warned
    if warned:
        assert document["warnings"][0].startswith(LONG)
        assert errors == f"warning: {document['warnings'][0]}\n"
        assert main(["--model_config", "tiny.json"]) == 0
        assert capsys.readouterr().err == errors


@pytest.mark.parametrize("flags", ["--tokens 1B --gpus H100", "--training_budget 5M", "--gpus H100"])
def test_money_and_fits_warn_too(flags: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "tiny.json").write_text(config(8193))
    (folder / "short.json").write_text(config(64))
    document, errors = document_of(f"--model_config tiny.json short.json {flags}", capsys)
    assert errors.startswith(f"warning: {LONG}")
    assert len(document["warnings"]) == errors.count("\n") == 1


def test_who_names_the_length_is_not_warned(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "tiny.json").write_text(config(64))
    document, errors = document_of("--model_config tiny.json --seq_len 8193", capsys)
    assert (document["warnings"], errors) == ([], "")


# --- A comparison ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["long.json short.json", "short.json long.json"])
def test_models_are_compared_at_the_smallest_default(
    order: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "long.json").write_text(config(64))
    (folder / "short.json").write_text(config(32, DEEPSEEK_V3))
    document, errors = document_of(f"--compare --tokens 1B --gpus H100 --model_config {order}", capsys)
    assert [model["sequence_length"] for model in document["comparison"]["models"]] == [32, 32]
    assert [(analysis["setup"]["sequence_length_source"]) for analysis in document["analyses"]] == [
        "max_position_embeddings of short"
    ] * 2
    assert document["warnings"] == [
        "the models are compared at 32 tokens a sequence, their smallest default (max_position_embeddings of short); "
        "--seq_len sets another"
    ]
    assert errors == ""
    chosen, _ = document_of(f"--compare --tokens 1B --gpus H100 --model_config {order} --seq_len 32", capsys)
    assert chosen["comparison"] == document["comparison"]
    assert chosen["warnings"] == []


def test_a_comparison_at_a_long_default_warns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, length in {"tiny.json": 8193, "longer.json": 10_000}.items():
        (folder / name).write_text(config(length))
    document, errors = document_of("--compare --tokens 1B --gpus H100 --model_config longer.json tiny.json", capsys)
    assert len(document["warnings"]) == 3
    assert errors.splitlines() == [f"warning: {warning}" for warning in document["warnings"][:2]]
    assert document["warnings"][0].startswith("longer: 8,193 tokens a sequence (max_position_embeddings of tiny), ")


def test_deepseek_v3_and_llama_405b_cost_what_they_do_at_4096(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--compare --model_config deepseek_v3 llama_3_1_405b --tokens 15T --gpus H100"
    document, _ = document_of(flags, capsys)
    models = document["comparison"]["models"]
    assert [model["sequence_length"] for model in models] == [4096, 4096]
    assert [round(model["outcome"]["cost_usd"] / 1e6, 1) for model in models] == [9.2, 79.8]


def test_a_model_without_a_length_is_compared_at_the_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "none.json").write_text(
        json.dumps({field: value for field, value in LLAMA.items() if field != "max_position_embeddings"})
    )
    (folder / "short.json").write_text(config(32))
    flags = "--compare --tokens 1B --gpus H100 --model_config none.json"
    document, _ = document_of(f"{flags} short.json", capsys)
    assert [model["sequence_length"] for model in document["comparison"]["models"]] == [32, 32]
    assert main(f"{flags} none.json".split()) == 2
    assert "give --seq_len" in capsys.readouterr().err


def test_a_family_through_transformers_has_a_default_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "foreign.json").write_text(json.dumps(PHI3 | {"max_position_embeddings": 48}))
    (folder / "long.json").write_text(config(64))
    document, _ = document_of("--compare --tokens 1B --gpus H100 --model_config long.json foreign.json", capsys)
    assert [model["sequence_length"] for model in document["comparison"]["models"]] == [48, 48]
    assert "(max_position_embeddings of foreign)" in document["warnings"][0]
