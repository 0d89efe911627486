"""A folder in place of its config.json: its fields, its name, and its errors."""

import json
import re
from pathlib import Path

import msgspec
import pytest

from tests.shrunken import LLAMA
from torch_models.errors import UserError
from torch_models.fields.config import ForeignConfig, read_model, read_spec


def test_a_folder_stands_for_its_config(tmp_path: Path) -> None:
    folder = tmp_path / "my-llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    spec = read_spec(folder)
    assert (spec.name, spec.folder) == ("my-llama", str(folder))
    assert msgspec.structs.replace(spec, name="config", folder=None) == read_spec(LLAMA)
    assert read_spec(f"{folder}/").name == "my-llama"
    assert read_spec(folder / "config.json").folder is None


def test_the_name_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    monkeypatch.chdir(tmp_path)
    assert read_spec(".").name == tmp_path.name


def test_a_folder_of_another_family(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "opt"}))
    model = read_model(tmp_path)
    assert isinstance(model, ForeignConfig)
    assert (model.name, model.source, model.folder) == (tmp_path.name, str(tmp_path / "config.json"), str(tmp_path))


def test_errors_in_a_folder_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path))}: is a folder without a config\.json$"):
        read_spec(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA | {"hidden_size": -1}))
    with pytest.raises(UserError, match=rf"^{re.escape(str(file))}: hidden_size = -1: must be int >= 1$"):
        read_spec(tmp_path)
    file.write_text("{")
    with pytest.raises(UserError, match=rf"^{re.escape(str(file))}: not valid JSON: "):
        read_spec(tmp_path)
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match=rf"^{re.escape(str(file))}: must be a file of JSON, but is a folder$"):
        read_spec(tmp_path)
