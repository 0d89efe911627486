"""The header of a safetensors file: what it says, and one line for everything that breaks the format."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints import INDEX, SINGLE, write_header, write_raw_header
from torch_models.checkpoints.headers import DTYPE_BITS, StoredTensor, read_header, read_headers
from torch_models.errors import CheckpointError

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "I64": torch.int64,
    "F64": torch.float64,
}


def test_what_safetensors_writes_is_read(tmp_path: Path) -> None:
    file = tmp_path / SINGLE
    tensors = {name: torch.zeros(3, 5, dtype=dtype) for name, dtype in DTYPES.items()}
    tensors |= {"scalar": torch.zeros(()), "empty": torch.zeros(0, 7)}
    save_file(tensors, file, metadata={"format": "pt"})
    header = read_header(file)
    assert header == {name: StoredTensor(file, name, (3, 5)) for name in DTYPES} | {
        "scalar": StoredTensor(file, "F32", ()),
        "empty": StoredTensor(file, "F32", (0, 7)),
    }
    for name, tensor in tensors.items():
        assert (header[name].numel, header[name].nbytes) == (tensor.numel(), tensor.nbytes)


def test_a_file_without_tensors(tmp_path: Path) -> None:
    save_file({}, tmp_path / SINGLE)
    assert read_header(tmp_path / SINGLE) == {}


def test_numbers_of_less_than_a_byte(tmp_path: Path) -> None:
    write_header(tmp_path / SINGLE, {"a": ("F4", (3, 6))})
    assert read_header(tmp_path / SINGLE)["a"].nbytes == 9


def test_a_file_of_no_rights_or_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none: cannot be read: No such file or directory$"):
        read_header(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"cannot be read: Is a directory$"):
        read_header(tmp_path)


def entry(shape: Any = (2, 3), offsets: Any = (0, 24), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BROKEN: dict[str, tuple[Any, int, str]] = {
    "no object": ([1], 0, "its header must be a JSON object, but is [1]"),
    "no JSON": (b"{]", 0, "its header: not valid JSON: "),
    "no UTF-8": (b'{"\xff": 1}', 0, "its header: not valid JSON: 'utf-8' codec"),
    "too deep": (b'{"a": ' + b"[" * 100_000, 0, "its header: not valid JSON: nested too deeply"),
    "too many digits": (b'{"a": ' + b"1" * 6_000 + b"}", 0, "its header: not valid JSON: a number has too many digits"),
    "name twice": (b'{"a": 1, "b": 2, "b": 3}', 0, "its header: has b twice"),
    "key twice": (b'{"a": {"dtype": 1, "dtype": 2}}', 0, "its header: has dtype twice"),
    "no entry": ({"a": 7}, 24, "a must be an object, but is 7"),
    "no dtype": ({"a": entry(dtype=None)}, 24, "a has dtype null, which is not of the format"),
    "a list as dtype": ({"a": entry(dtype=[])}, 24, "a has dtype [], which is not of the format"),
    "unknown dtype": ({"a": entry(dtype="F128")}, 24, "a has dtype 'F128', which is not of the format"),
    "no shape": ({"a": entry(shape=6)}, 24, "a has shape 6, which must be a list of whole numbers from 0"),
    "negative": ({"a": entry(shape=[-2, -3])}, 24, "a has shape [-2, -3], which must be a list of whole numbers"),
    "a half": ({"a": entry(shape=[1.5, 4])}, 24, "a has shape [1.5, 4], which must be a list of whole numbers"),
    "true": ({"a": entry(shape=[True, 6])}, 24, "a has shape [True, 6], which must be a list of whole numbers"),
    "one offset": ({"a": entry(offsets=[24])}, 24, "a has data_offsets [24], which must be its beginning and its end"),
    "backwards": ({"a": entry(offsets=[24, 0])}, 24, "a has data_offsets [24, 0], which must be its beginning"),
    "other bytes": ({"a": entry(dtype="BF16")}, 24, "a has 24 bytes, but BF16 of shape (2, 3) has 96 bits"),
    "huge": ({"a": entry(shape=[10**90])}, 24, "a has 24 bytes, but F32 of shape (1000"),
    "cut": ({"a": entry()}, 23, "a ends at byte 24 of the data, and the file has only 23: it is not whole"),
    "more": ({"a": entry()}, 25, "its tensors end at byte 24 of the data, and the file has 25"),
    "gap": (
        {"a": entry(), "b": entry(offsets=[28, 52])},
        52,
        "b begins at byte 28 of the data, but the tensor before it ends at 24",
    ),
    "overlap": (
        {"a": entry(), "b": entry(offsets=[20, 44])},
        44,
        "b begins at byte 20 of the data, but the tensor before it ends at 24",
    ),
    "control characters": ({"a\n\x1b[2J": 7}, 24, r"a\n\x1b[2J must be an object, but is 7"),
}


@pytest.mark.parametrize(("header", "data", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_broken(header: Any, data: int, said: str, tmp_path: Path) -> None:
    file = tmp_path / SINGLE
    write_raw_header(file, header if isinstance(header, bytes) else json.dumps(header).encode(), data)
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    assert str(caught.value).startswith(f"{file}: not a whole safetensors file: {said}")
    assert "\n" not in str(caught.value)
    assert "sys." not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "length"),
    [
        (b"", 0),
        (b"1234567", int.from_bytes(b"1234567", "little")),
        ((0).to_bytes(8, "little"), 0),
        ((3).to_bytes(8, "little") + b"{}", 3),
        ((2**64 - 1).to_bytes(8, "little") + b"{}", 2**64 - 1),
    ],
)
def test_length_of_the_header(content: bytes, length: int, tmp_path: Path) -> None:
    file = tmp_path / SINGLE
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    limits = f"the limits are 100000000 bytes and the file's {len(content)}"
    assert str(caught.value).endswith(f": its header would have {length} bytes, and {limits}")


def test_a_header_beyond_the_limit_of_the_format_is_not_read(tmp_path: Path) -> None:
    """The file is a hole of more bytes than that, and reading it as JSON would take long."""
    with (tmp_path / SINGLE).open("wb") as opened:
        opened.write((100_000_001).to_bytes(8, "little"))
        opened.truncate(200_000_000)
    with pytest.raises(CheckpointError, match="its header would have 100000001 bytes, and the limits are 100000000"):
        read_header(tmp_path / SINGLE)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    assert read_headers(tmp_path) is None
    (tmp_path / SINGLE).mkdir()
    (tmp_path / INDEX).mkdir()
    assert read_headers(tmp_path) is None


def write_total(folder: Path, total: str) -> None:
    (folder / INDEX).write_text(f'{{"metadata": {{"total_size": {total}}}, "weight_map": {{"a": "b.safetensors"}}}}')


@pytest.mark.parametrize(
    ("total", "expected"),
    [("12", 12), ("12.0", 12), ("12.5", None), ("true", None), ("null", None), ('"12"', None), ("1e999", None)],
)
def test_total_size_of_the_index(total: str, expected: int | None, tmp_path: Path) -> None:
    write_total(tmp_path, total)
    headers = read_headers(tmp_path)
    assert headers is not None
    assert (headers.total_size, headers.absent, headers.tensors) == (expected, {"a": "b.safetensors"}, {})


@pytest.mark.parametrize("shard", ["", "..", "../a.safetensors", "/a.safetensors", "a/b.safetensors"])
def test_shards_are_files_of_the_folder(shard: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"t": shard}}))
    with pytest.raises(CheckpointError) as caught:
        read_headers(tmp_path)
    assert str(caught.value) == f"{tmp_path / INDEX}: t is in {shard!r}, which is not a file in this folder"


@pytest.mark.parametrize("shard", ["b\nc", "b\x00", "\ud800"])
def test_names_of_shards_that_no_file_has(shard: str, tmp_path: Path) -> None:
    write_header(tmp_path / "a.safetensors", {"t": ("F32", (2,))})
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"t": shard, "u": "a.safetensors"}}))
    with pytest.raises(CheckpointError) as caught:
        read_headers(tmp_path)
    shown = ascii(shard)[1:-1]
    assert str(caught.value) == f"{tmp_path / 'a.safetensors'}: t should be in {shown} by {INDEX}"


def test_index_with_a_name_twice(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text('{"weight_map": {"a": "b", "a": "c"}}')
    with pytest.raises(CheckpointError, match=r"index\.json: has a twice$"):
        read_headers(tmp_path)


def test_index_that_is_a_pointer_or_too_large(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=r"index\.json: is a pointer of Git LFS"):
        read_headers(tmp_path)
    with (tmp_path / INDEX).open("wb") as opened:
        opened.truncate(100_000_001)
    with pytest.raises(CheckpointError, match=r"100000001 bytes; an index has at most 100000000$"):
        read_headers(tmp_path)


def test_every_dtype_has_its_bits() -> None:
    for name, dtype in DTYPES.items():
        assert DTYPE_BITS[name] == dtype.itemsize * 8


def test_neither_torch_nor_safetensors_reads_them() -> None:
    script = """
import sys, torch_models.checkpoints.contents
assert not {'torch', 'safetensors', 'numpy'} & set(sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
