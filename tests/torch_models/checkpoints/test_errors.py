"""Every mistake in a checkpoint folder: tensors that do not fit, broken files, quantised weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import (
    EXPERTS,
    INDEX,
    SINGLE,
    State,
    native_state,
    separate_experts,
    write,
    write_index,
    write_shards,
)
from tests.shrunken import DEEPSEEK_V3, LLAMA
from torch_models import load_checkpoint
from torch_models.errors import CheckpointError, ConfigError, UserError
from torch_models.families import deepseek_v3
from torch_models.fields.stored_names import StoredName

# --- Tensors that do not fit -----------------------------------------------------------------------------------

Change = Callable[[State], object]
PROBLEMS: dict[str, tuple[dict[str, Any], Change, str]] = {
    "missing": (LLAMA, lambda s: s.pop("model.norm.weight"), "1 missing: model.norm.weight (64,)"),
    "missing expert": (
        DEEPSEEK_V3,
        lambda s: s.pop(f"{EXPERTS}.7.up_proj.weight"),
        f"1 missing: {EXPERTS}.7.up_proj.weight (24, 64)",
    ),
    "missing experts": (
        DEEPSEEK_V3,
        lambda s: [s.pop(name) for name in list(s) if name.startswith(f"{EXPERTS}.")],
        f"2 missing: {EXPERTS}.gate_up_proj (16, 48, 64), {EXPERTS}.down_proj (16, 64, 24)",
    ),
    "missing layer": (
        LLAMA,
        lambda s: [s.pop(name) for name in list(s) if name.startswith("model.layers.2.")],
        "9 missing: model.layers.2.input_layernorm.weight (64,), model.layers.2.self_attn.q_proj.weight (64, 64), "
        "model.layers.2.self_attn.k_proj.weight (64, 64), …",
    ),
    "surplus": (
        LLAMA,
        lambda s: s.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}),
        f"1 surplus: model.layers.0.self_attn.q_proj.bias in {SINGLE}",
    ),
    "surplus expert": (
        DEEPSEEK_V3,
        lambda s: s.update({f"{EXPERTS}.16.up_proj.weight": torch.zeros(24, 64)}),
        f"1 surplus: {EXPERTS}.16.up_proj.weight in {SINGLE}",
    ),
    "misshapen": (
        LLAMA,
        lambda s: s.update({"model.norm.weight": torch.zeros(65)}),
        f"1 misshapen: model.norm.weight in {SINGLE} has shape (65,), must be (64,)",
    ),
    "transposed": (
        LLAMA,
        lambda s: s.update({"lm_head.weight": torch.zeros(64, 96)}),
        f"1 misshapen: lm_head.weight in {SINGLE} has shape (64, 96), must be (96, 64)",
    ),
    "would broadcast": (
        LLAMA,
        lambda s: s.update({"model.norm.weight": torch.zeros(1)}),
        f"1 misshapen: model.norm.weight in {SINGLE} has shape (1,), must be (64,)",
    ),
    "misshapen expert": (
        DEEPSEEK_V3,
        lambda s: s.update({f"{EXPERTS}.7.up_proj.weight": torch.zeros(48, 64)}),
        f"1 misshapen: {EXPERTS}.7.up_proj.weight in {SINGLE} has shape (48, 64), must be (24, 64)",
    ),
    "renamed": (
        LLAMA,
        lambda s: s.update({"norm.weight": s.pop("model.norm.weight")}),
        f"1 missing: model.norm.weight (64,); 1 surplus: norm.weight in {SINGLE}",
    ),
    "stacked and separate": (
        DEEPSEEK_V3,
        lambda s: s.update({f"{EXPERTS}.down_proj": torch.zeros(16, 64, 24)}),
        f"16 stored twice: {EXPERTS}.0.down_proj.weight is also in {EXPERTS}.down_proj, ",
    ),
}


@pytest.mark.parametrize(("fields", "change", "said"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_tensors_that_do_not_fit_are_named(fields: dict[str, Any], change: Change, said: str, tmp_path: Path) -> None:
    state = separate_experts(native_state(fields))
    change(state)
    folder = write(tmp_path, fields, state)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert str(caught.value).startswith(f"{folder}: tensors that do not fit config.json: {said}")
    assert said.endswith((", ", "…")) or str(caught.value).endswith(said)


def test_one_name_twice_under_two_spellings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepseek_v3.Config, "stored_names", (StoredName("moe.router", "mlp.gate.weight"),))
    state = native_state(DEEPSEEK_V3)
    state["model.layers.1.moe.router"] = state["model.layers.1.mlp.gate.weight"].clone()
    folder = write(tmp_path, DEEPSEEK_V3, state)
    with pytest.raises(CheckpointError, match=r"1 stored twice: model\.layers\.1\.m\S+ in model\.safetensors is also"):
        load_checkpoint(folder)


def test_nothing_is_built_before_all_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = native_state(LLAMA)
    state.pop("model.norm.weight")
    folder = write(tmp_path, LLAMA, state)
    devices = []
    original = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: devices.append(k.get("device")) or original(*a, **k))
    with pytest.raises(CheckpointError, match="1 missing"):
        load_checkpoint(folder, device="cpu")
    assert "cpu" not in {str(device) for device in devices}


# --- Broken folders --------------------------------------------------------------------------------------------


def refused(folder: Path, error: type[UserError] = CheckpointError) -> str:
    """What the error says, less the folder."""
    with pytest.raises(error) as caught:
        load_checkpoint(folder)
    return str(caught.value).replace(str(folder), "FOLDER")


def test_missing_folder(tmp_path: Path) -> None:
    assert refused(tmp_path / "none") == "FOLDER: no such folder; nothing is downloaded"


def test_missing_config(tmp_path: Path) -> None:
    assert refused(tmp_path) == "FOLDER/config.json: no such file"


def test_config_that_is_not_understood(tmp_path: Path) -> None:
    write(tmp_path, LLAMA | {"sliding_window": 4}, native_state(LLAMA))
    assert refused(tmp_path, ConfigError).startswith(
        "FOLDER/config.json: sliding_window = 4: describes layers with a sliding window"
    )


def test_missing_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    nothing = "FOLDER: contains neither model.safetensors nor model.safetensors.index.json"
    assert refused(tmp_path) == nothing
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert (
        refused(tmp_path) == f"{nothing}; pytorch_model.bin is a pickle, which is never read: convert it to safetensors"
    )


@pytest.mark.parametrize("cut", [0, 7, 20, -1], ids=["empty", "no header", "half a header", "last byte gone"])
def test_truncated_file(cut: int, tmp_path: Path) -> None:
    file = write(tmp_path, LLAMA, native_state(LLAMA)) / SINGLE
    file.write_bytes(file.read_bytes()[:cut])
    assert refused(tmp_path).startswith("FOLDER/model.safetensors: not a whole safetensors file: ")


def test_file_of_something_else(tmp_path: Path) -> None:
    file = write(tmp_path, LLAMA, native_state(LLAMA)) / SINGLE
    file.write_bytes(b"PK\x03\x04" * 100)
    assert refused(tmp_path).startswith("FOLDER/model.safetensors: not a whole safetensors file: ")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def test_pointers_of_git_lfs(tmp_path: Path) -> None:
    (write(tmp_path, LLAMA, native_state(LLAMA)) / SINGLE).write_bytes(POINTER)
    assert refused(tmp_path) == f"FOLDER/{SINGLE}: is a pointer of Git LFS, not the weights: fetch them"
    (tmp_path / SINGLE).unlink()
    weight_map = write_shards(tmp_path, LLAMA, native_state(LLAMA))
    (tmp_path / weight_map["model.norm.weight"]).write_bytes(POINTER)
    shard = weight_map["model.norm.weight"]
    assert refused(tmp_path) == f"FOLDER/{shard}: is a pointer of Git LFS, not the weights: fetch them"


def test_truncated_shard(tmp_path: Path) -> None:
    weight_map = write_shards(tmp_path, LLAMA, native_state(LLAMA))
    file = tmp_path / sorted(weight_map.values())[-1]
    file.write_bytes(file.read_bytes()[:-10])
    assert refused(tmp_path).startswith(f"FOLDER/{file.name}: not a whole safetensors file: ")


def test_shard_that_does_not_exist(tmp_path: Path) -> None:
    weight_map = write_shards(tmp_path, LLAMA, native_state(LLAMA))
    (tmp_path / weight_map["model.norm.weight"]).unlink()
    first = next(name for name, shard in weight_map.items() if shard == weight_map["model.norm.weight"])
    expected = f"FOLDER/{INDEX}: {first} is in {weight_map[first]!r}, which is not a file in this folder"
    assert refused(tmp_path) == expected


def test_shard_outside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    weight_map = write_shards(folder, LLAMA, native_state(LLAMA))
    shard = weight_map["model.norm.weight"]
    (folder / shard).rename(tmp_path / shard)
    write_index(folder, {name: f"../{file}" if file == shard else file for name, file in weight_map.items()})
    assert refused(folder).endswith(f"is in '../{shard}', which is not a file in this folder")


def test_tensor_that_only_the_index_has(tmp_path: Path) -> None:
    weight_map = write_shards(tmp_path, LLAMA, native_state(LLAMA))
    shard = weight_map["model.norm.weight"]
    write_index(tmp_path, weight_map | {"model.more": shard})
    assert refused(tmp_path) == f"FOLDER/{INDEX}: model.more is in {shard}, but that file does not contain it"


def test_tensor_that_only_a_shard_has(tmp_path: Path) -> None:
    weight_map = write_shards(tmp_path, LLAMA, native_state(LLAMA))
    shard = weight_map.pop("model.norm.weight")
    write_index(tmp_path, weight_map)
    assert refused(tmp_path) == f"FOLDER/{shard}: model.norm.weight is not in {INDEX}"


def test_tensor_in_another_shard(tmp_path: Path) -> None:
    weight_map = write_shards(tmp_path, LLAMA, native_state(LLAMA))
    name, shard = next(iter(weight_map.items()))
    other = sorted(set(weight_map.values()) - {shard})[0]
    write_index(tmp_path, weight_map | {name: other})
    assert refused(tmp_path) == f"FOLDER/{shard}: {name} should be in {other} by {INDEX}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON: "),
        ("[]", "weight_map must be an object of tensor names and files"),
        ("{}", "weight_map must be an object of tensor names and files"),
        ('{"weight_map": {"a": 1}}', "weight_map must be an object of tensor names and files"),
    ],
)
def test_broken_index(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / INDEX).write_text(content)
    assert refused(tmp_path).startswith(f"FOLDER/{INDEX}: {said}")


# --- Quantised checkpoints -------------------------------------------------------------------------------------


def test_quantised_by_its_config(tmp_path: Path) -> None:
    write(tmp_path, LLAMA | {"quantization_config": {"quant_method": "fp8"}}, native_state(LLAMA))
    assert refused(tmp_path, ConfigError) == (
        "FOLDER/config.json: quantization_config = {'quant_method': 'fp8'}: quantised checkpoints are not supported; "
        "convert the weights to 16 bits and remove the field"
    )


@pytest.mark.parametrize(
    ("dtype", "stored_as"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.float8_e5m2, "F8_E5M2"), (torch.int8, "I8")]
)
def test_quantised_by_a_dtype(dtype: torch.dtype, stored_as: str, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    state = native_state(LLAMA)
    state |= {name: state[name].to(dtype), f"{name}_scale_inv": torch.ones(1, 1)}
    write(tmp_path, LLAMA, state)
    assert refused(tmp_path) == (
        f"FOLDER/{SINGLE}: {name} is stored as {stored_as}, and only BF16, F16, F32, F64 are read: "
        "quantised checkpoints are not supported"
    )
