"""Which files of a folder are its weights where none is called as usual, and why none is read where that is so."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import INDEX, SINGLE, assert_same_tensors, native_state, write, write_header, write_shards
from tests.shrunken import LLAMA
from torch_models import load_checkpoint
from torch_models.checkpoints.headers import read_headers, stored_tensors
from torch_models.checkpoints.weight_files import weights_without_index, why_nothing_is_read
from torch_models.errors import CheckpointError

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def folder_of(folder: Path, *names: str) -> Path:
    """Each file has one tensor, called as the file."""
    for name in names:
        write_header(folder / name, {name: ("BF16", (2, 3))})
    return folder


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (["weights.safetensors"], ["weights.safetensors"]),
        (["model.fp16.safetensors", "adapter_model.safetensors"], ["model.fp16.safetensors"]),
        (["model.fp16.safetensors", "._model.fp16.safetensors"], ["model.fp16.safetensors"]),
        (["model-00001-of-00001.safetensors"], ["model-00001-of-00001.safetensors"]),
        ([SECOND, FIRST, "consolidated.safetensors"], [FIRST, SECOND]),
        (["a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors"], None),
    ],
    ids=str,
)
def test_files_of_other_names_are_read(names: list[str], read: list[str] | None, tmp_path: Path) -> None:
    folder_of(tmp_path, *names)
    expected = read or names
    assert weights_without_index(tmp_path) == [tmp_path / name for name in expected]
    assert list(stored_tensors(tmp_path)) == expected


def test_usual_names_come_first(tmp_path: Path) -> None:
    folder_of(tmp_path, SINGLE, FIRST, SECOND, "weights.safetensors")
    assert list(stored_tensors(tmp_path)) == [SINGLE]
    (tmp_path / SINGLE).unlink()
    (tmp_path / INDEX).write_text(f'{{"weight_map": {{"{SECOND}": "{SECOND}"}}}}')
    assert list(stored_tensors(tmp_path)) == [SECOND]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([FIRST], f"{SECOND} is not there, and there is no {INDEX}"),
        ([SECOND], f"{FIRST} is not there, and there is no {INDEX}"),
        (
            [FIRST, SECOND, "model-00003-of-00002.safetensors"],
            f"{FIRST} is one of 3 files, whose numbers must be from 1 to 2, and there is no {INDEX}",
        ),
        (
            ["a.safetensors", "b.safetensors"],
            "a.safetensors, b.safetensors are several files, "
            f"and there is no {INDEX}, which says what belongs to the model",
        ),
        (
            [FIRST, SECOND, "x.safetensors", "y.safetensors"],
            f"{FIRST}, {SECOND}, x.safetensors, … are several files, "
            f"and there is no {INDEX}, which says what belongs to the model",
        ),
        (
            [FIRST, "model-00002-of-00003.safetensors"],
            f"{FIRST}, model-00002-of-00003.safetensors are several files, "
            f"and there is no {INDEX}, which says what belongs to the model",
        ),
        (["adapter_model.safetensors"], "adapter_model.safetensors has the weights of an adapter, not the model's"),
        (
            ["consolidated.00.safetensors"],
            "consolidated.00.safetensors has, by its name, the tensor names of the publisher's own code",
        ),
    ],
    ids=str,
)
def test_files_that_are_not_read(names: list[str], reason: str, tmp_path: Path) -> None:
    folder_of(tmp_path, *names)
    assert read_headers(tmp_path) is None
    assert why_nothing_is_read(tmp_path) == reason
    with pytest.raises(CheckpointError) as caught:
        stored_tensors(tmp_path)
    assert str(caught.value) == f"{tmp_path}: has no weights to read: {reason}"


NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder": (Path.mkdir, "is a folder, not a file"),
    "pipe": (os.mkfifo, "is no regular file"),
    "device": (lambda file: file.symlink_to("/dev/zero"), "is no regular file"),
    "link to nothing": (lambda file: file.symlink_to("none"), "cannot be read: No such file or directory"),
    "link to itself": (lambda file: file.symlink_to(file), "cannot be read: Too many levels of symbolic links"),
}


@pytest.mark.parametrize(("make", "reason"), NO_FILES.values(), ids=NO_FILES.keys())
@pytest.mark.parametrize("name", [SINGLE, INDEX, "weights.safetensors", FIRST])
def test_what_is_no_regular_file_is_never_opened(
    name: str, make: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    make(tmp_path / name)
    assert read_headers(tmp_path) is None
    assert why_nothing_is_read(tmp_path) == f"{name} {reason}"


def test_a_pointer_of_git_lfs_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert why_nothing_is_read(tmp_path) == "weights.safetensors is a pointer of Git LFS, not the weights"


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    for name in (FIRST, SECOND):
        write_header(tmp_path / name, {"a": ("BF16", (2, 3))})
    with pytest.raises(CheckpointError) as caught:
        read_headers(tmp_path)
    assert str(caught.value) == f"{tmp_path / SECOND}: a is also in {FIRST}"


def test_names_are_shown_on_one_line(tmp_path: Path) -> None:
    folder_of(tmp_path, "a\n\x1b[2J.safetensors", "b.safetensors")
    assert str(why_nothing_is_read(tmp_path)).startswith(r"a\n\x1b[2J.safetensors, b.safetensors are several files")


def test_they_load_as_well(tmp_path: Path) -> None:
    state = native_state(LLAMA)
    write_shards(tmp_path, LLAMA, state)
    (tmp_path / INDEX).unlink()
    assert_same_tensors(load_checkpoint(tmp_path), state)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    (write(tmp_path, LLAMA, state) / SINGLE).rename(tmp_path / "weights.safetensors")
    assert_same_tensors(load_checkpoint(tmp_path), state)
