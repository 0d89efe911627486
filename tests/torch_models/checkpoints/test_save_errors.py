"""What cannot be saved is refused before anything is written, and a folder is written whole or not at all."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import safetensors.torch
import torch
from torch import nn

from tests.shrunken import DEEPSEEK_V3, LLAMA
from torch_models import CheckpointError, UserError, build, load_checkpoint, read_spec, save_checkpoint


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build(LLAMA)


def refused(model: Any, folder: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        save_checkpoint(model, folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- The folder --------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_empty(model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert refused(model, tmp_path) == f"{tmp_path}: is not empty; give a new folder"
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_path_that_is_a_file(model: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert refused(model, file) == f"{file}: is a file; give a new folder"
    assert refused(model, file / "below") == f"{file / 'below'}: cannot be created: {file} is a file"
    assert file.read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_parent_without_permission(model: nn.Module, tmp_path: Path) -> None:
    parent = tmp_path / "locked"
    parent.mkdir(mode=0o500)
    folder = parent / "saved"
    assert refused(model, folder) == f"{folder}: cannot be created: no permission to write in {parent}"


def test_what_the_system_says_of_permission(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    folder = tmp_path / "saved"
    assert refused(model, folder) == f"{folder}: cannot be created: no permission to write in {tmp_path}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", [None, 7, b"bytes", ""], ids=repr)
def test_no_path(model: nn.Module, folder: Any) -> None:
    assert refused(model, folder).startswith("folder = ")


@pytest.mark.parametrize("name", ["a\0b", "x" * 300], ids=["null byte", "too long"])
def test_a_name_that_cannot_be(model: nn.Module, name: str, tmp_path: Path) -> None:
    assert "cannot be created: " in refused(model, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_a_new_one_and_a_link_to_one(model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "target").mkdir()
    for name in ("empty", "deep/er/new", "link"):
        save_checkpoint(model, tmp_path / name)
        assert load_checkpoint(tmp_path / name).spec.num_layers == 3
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "empty").stat().st_mode == (tmp_path / "deep").stat().st_mode


# --- The model ---------------------------------------------------------------------------------------------------


def cases() -> dict[str, tuple[Callable[[], Any], str]]:
    def changed(change: Callable[[Any], object]) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            model = build(DEEPSEEK_V3)
            change(model)
            return model

        return make

    def resized(model: Any) -> None:
        model.lm_head.weight = nn.Parameter(torch.zeros(97, 64))

    def cut(model: Any) -> None:
        del model.model.layers[3]

    def extended(model: Any) -> None:
        model.adapter = nn.Linear(1, 1)

    by_hand = msgspec.structs.replace(read_spec(LLAMA), config_json=None)
    fit = "the model config: tensors that do not fit config.json: 1 misshapen: lm_head.weight has shape (97, 64)"
    return {
        "not ours": (lambda: nn.Linear(2, 2), "model = 'Linear': must be a model of torch_models"),
        "a wrapper of none": (
            lambda: torch.nn.DataParallel(nn.Linear(2, 2)),
            "model = 'DataParallel': must be a model",
        ),
        "no module": (lambda: "llama", "model = 'str': must be a model of torch_models"),
        "meta": (lambda: build(LLAMA, device="meta"), "model = 'config': has no values to save: model.embed_tokens."),
        "made by hand": (lambda: build(by_hand), "model = 'config': its spec was made by hand, so that there is no"),
        "resized": (changed(resized), fit),
        "cut": (changed(cut), "the model config: tensors that do not fit config.json: "),
        "extended": (
            changed(extended),
            "the model config: tensors that do not fit config.json: 2 surplus: adapter.wei",
        ),
        "dtype": (
            changed(lambda m: m.to(torch.float8_e4m3fn)),
            "model = 'config': model.embed_tokens.weight is torch.fl",
        ),
    }


@pytest.mark.parametrize(("make", "said"), cases().values(), ids=cases().keys())
def test_a_model_that_cannot_be_saved(make: Callable[[], Any], said: str, tmp_path: Path) -> None:
    assert refused(make(), tmp_path / "saved").startswith(said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("most", [0, -1, 1.5, True, "5GB", None], ids=repr)
def test_a_size_that_cannot_be(model: nn.Module, most: Any, tmp_path: Path) -> None:
    assert refused(model, tmp_path / "x", max_shard_bytes=most).endswith("must be a number of bytes, at least 1")


def test_without_safetensors(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    install = "writing it needs safetensors; install model-training-cost-analysis[checkpoints]"
    assert refused(model, tmp_path / "saved") == f"{tmp_path / 'saved'}: {install}"
    assert list(tmp_path.iterdir()) == []


# --- Whole or not at all -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["^C", "full"])
def test_nothing_is_left_of_an_interrupted_write(
    model: nn.Module, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, files = safetensors.torch.save_file, []

    def second_fails(tensors: Any, file: Path, **options: Any) -> None:
        assert not (tmp_path / "saved").exists()
        write(tensors, file, **options)
        files.append(file)
        if len(files) == 2:
            raise error

    monkeypatch.setattr(safetensors.torch, "save_file", second_fails)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else CheckpointError) as caught:
        save_checkpoint(model, tmp_path / "saved", max_shard_bytes=100_000)
    assert len(files) == 2
    assert list(tmp_path.iterdir()) == []
    if isinstance(error, OSError):
        assert re.fullmatch(r".*/saved/model-00002-of-.*: cannot be written: .*No space left.*", str(caught.value))


def test_a_folder_that_was_filled_meanwhile_is_kept(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, folder = safetensors.torch.save_file, tmp_path / "saved"

    def filled(tensors: Any, file: Path, **options: Any) -> None:
        write(tensors, file, **options)
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")

    monkeypatch.setattr(safetensors.torch, "save_file", filled)
    assert refused(model, folder).startswith(f"{folder}: cannot be created: ")
    assert [file.name for file in tmp_path.iterdir()] == ["saved"]
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_head_that_is_no_copy_of_the_embedding_is_not_left_out(tmp_path: Path) -> None:
    tied = build(LLAMA | {"tie_word_embeddings": True})
    tied.lm_head.weight = nn.Parameter(tied.lm_head.weight.detach().clone())
    save_checkpoint(tied, tmp_path / "equal")
    with torch.no_grad():
        tied.lm_head.weight[3, 5] += 1
    assert "its head differs from its embedding, but the config ties them" in refused(tied, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["equal"]
