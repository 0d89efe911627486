"""--ignore_fields: what it lets pass, what it cannot name, and where the results repeat it."""

import json
from pathlib import Path
from typing import Any

import pytest

from model_training_cost_analysis import main
from tests.foreign_families import SMALL
from tests.screens import words
from tests.shrunken import LLAMA

GRANITE: dict[str, Any] = {"model_type": "granite", **SMALL}
IGNORED = "Ignored on request, not understood: "


def written(folder: Path, name: str, fields: dict[str, Any]) -> str:
    path = folder / f"{name}_config.json"
    path.write_text(json.dumps(fields))
    return str(path)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return words(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("error: ").rstrip()


@pytest.mark.parametrize(
    ("fields", "dropout"),
    [
        (LLAMA, "is a setting of training; the analysis trains without dropout"),
        (GRANITE, "is a setting of training: it multiplies no matrices, and what is measured in training mode has it"),
    ],
    ids=["native", "via transformers"],
)
def test_the_first_screen_and_json_repeat_what_is_ignored(
    fields: dict[str, Any], dropout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(tmp_path, "own", fields | {"kv_foo": 3, "bar": [1], "off": False, "attention_dropout": 0.1})
    command = ["--model_config", config, "--seq_len", "16"]
    line = refused(capsys, *command)
    assert line == (
        f"{config}: kv_foo = 3: this field is not understood; if it does not change the architecture, "
        "name it in --ignore_fields"
    )
    out = printed(capsys, *command, "--ignore_fields", "kv_foo, bar")
    assert f"{IGNORED}kv_foo = 3, bar = [1]" in out
    assert printed(capsys, *command, "--ignore_fields", "kv_foo", "--ignore_fields", "bar") == out
    assert "is off" not in out
    out = printed(capsys, *command, "--ignore-fields", "kv_foo,bar", "--details")
    assert "Fields that are not understood, ignored on request: kv_foo = 3, bar = [1]." in out
    assert "Fields that have no part in the model: " in out
    assert "off = false (is off)" in out
    assert f"attention_dropout = 0.1 ({dropout})" in out
    assert main([*command, "--ignore_fields", "kv_foo,bar", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (analysis,) = document["analyses"]
    assert analysis["ignored_fields"] == ["kv_foo = 3", "bar = [1]"]
    assert "off = false (is off)" in analysis["passed_over_fields"]
    assert document["plan"]["ignore_fields"] == "kv_foo,bar"
    plan = tmp_path / "again.json"
    plan.write_text(json.dumps(document))
    assert IGNORED in printed(capsys, "--plan", str(plan))


def test_nothing_is_said_where_nothing_is_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "gnored on request" not in printed(capsys, "--model_config", written(tmp_path, "own", LLAMA), "--details")


@pytest.mark.parametrize("fields", [LLAMA, GRANITE], ids=["native", "via transformers"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent", "--ignore_fields = 'absent': the config has no such field"),
        ("hidden_size", "--ignore_fields = 'hidden_size': is understood, and what is understood is not ignored"),
        ("eos_token_id", "--ignore_fields = 'eos_token_id': is understood, and what is understood is not ignored"),
        (
            "hybrid_layer_pattern",
            "--ignore_fields = 'hybrid_layer_pattern': describes layers of several kinds: it decides the architecture",
        ),
        ("", "--ignore_fields = '': must be names of fields, as a,b"),
        ("kv_foo,", "--ignore_fields = 'kv_foo,': must be names of fields, as a,b"),
    ],
)
def test_what_cannot_be_ignored(
    name: str, said: str, fields: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(tmp_path, "own", fields | {"kv_foo": 3, "hybrid_layer_pattern": [0, 1], "eos_token_id": 2})
    assert refused(capsys, "--model_config", config, "--ignore_fields", name) == said


def test_a_field_of_the_architecture_is_not_advised_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = written(tmp_path, "own", LLAMA | {"hybrid_layer_pattern": [0, 1]})
    said = "hybrid_layer_pattern = [0, 1]: describes layers of several kinds, which is not modelled for llama"
    assert refused(capsys, "--model_config", config) == f"{config}: {said}"


def test_of_several_models_one_must_have_the_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, odd = written(tmp_path, "plain", LLAMA), written(tmp_path, "odd", LLAMA | {"kv_foo": 3})
    command = ["--model_config", plain, odd, "--ignore_fields"]
    assert f"{IGNORED}kv_foo = 3 (odd)" in printed(capsys, *command, "kv_foo")
    compared = printed(capsys, *command, "kv_foo", "--tokens", "1B", "--gpus", "H100", "--compare")
    assert f"{IGNORED}kv_foo = 3 (odd)" in compared
    assert refused(capsys, *command, "kv_bar") == "--ignore_fields = 'kv_bar': none of the configs has such field"


def test_in_a_plan_and_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "own.toml"
    config = written(tmp_path, "own", LLAMA | {"kv_foo": 3, "bar": 1})
    plan.write_text(f'model_config = "{config}"\nignore_fields = ["kv_foo", "bar"]\n')
    assert f"{IGNORED}kv_foo = 3, bar = 1" in printed(capsys, "--plan", str(plan))
    plan.write_text(f'model_config = "{config}"\nignore_fields = "hidden_size"\n')
    assert refused(capsys, "--plan", str(plan)).startswith(f"{plan}: --ignore_fields = 'hidden_size': is understood")
    assert refused(capsys, "--training_budget", "5M", "--ignore_fields", "a") == "--ignore_fields needs --model_config"
