"""A folder whose weights do not fit its config, whose files are absent in part, or that cannot be compared."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from counting.command.main import main
from tests.checkpoints import (
    EXPERTS,
    INDEX,
    SINGLE,
    TIED,
    State,
    analysed,
    by_checkpoint,
    mtp_state,
    native_state,
    numbers_of,
    separate_experts,
    shapes_of,
    write,
    write_headers,
    written,
)
from tests.shrunken import DEEPSEEK_V3, LLAMA
from torch_models import build
from torch_models.errors import CheckpointError, UserError
from torch_models.fields.bundled import bundled_data
from torch_models.fields.config import spec_from_fields

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"

# --- An index, without some or all of its files ----------------------------------------------------------------


@pytest.mark.parametrize("there", [0, 1, 3])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_of_an_index_alone_names_and_bytes_are_compared(dtype: str, there: int, tmp_path: Path) -> None:
    stored = shapes_of(separate_experts(native_state(DEEPSEEK_V3)), dtype)
    write_headers(tmp_path, DEEPSEEK_V3 | {"torch_dtype": "bfloat16"}, stored, shards=4, there=there)
    analysis = analysed(tmp_path)
    parameters, in_buffers = numbers_of(build(DEEPSEEK_V3, device="meta"))
    assert by_checkpoint(analysis) == {"parameters": parameters, "router_correction_bias": in_buffers}
    compared = "names, shapes" if there else "names"
    assert f"in 4 files, {4 - there} of them absent, fit the config by {compared} and the bytes" in analysis.notes[-1]


@pytest.mark.parametrize("own_dtype", ["BF16", "F32"])
def test_buffers_may_have_a_dtype_of_their_own(own_dtype: str, tmp_path: Path) -> None:
    stored = shapes_of(native_state(LLAMA), "BF16")
    stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = (own_dtype, (4,))
    write_headers(tmp_path, LLAMA, stored, shards=2, there=0)
    assert by_checkpoint(analysed(tmp_path)) == {"parameters": numbers_of(build(LLAMA, device="meta"))[0]}


def test_published_llama_2_7b_index(tmp_path: Path) -> None:
    """Its `total_size` is 13,476,839,424: 6,738,415,616 parameters of 2 bytes and 32 x 64 frequencies of 4."""
    fields = json.loads((bundled_data() / "llama_2_7b_config.json").read_bytes())
    model = build(spec_from_fields(dict(fields), "x"), device="meta")
    weight_map = dict.fromkeys(model.state_dict(), "model-00001-of-00002.safetensors")
    weight_map |= dict.fromkeys(
        [f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(32)],
        "model-00002-of-00002.safetensors",
    )
    (tmp_path / "config.json").write_text(json.dumps(fields))
    index = {"metadata": {"total_size": 13_476_839_424}, "weight_map": weight_map}
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert by_checkpoint(analysed(tmp_path)) == {"parameters": 6_738_415_616}


def test_bytes_that_do_not_fit(tmp_path: Path) -> None:
    total = write_headers(tmp_path, LLAMA | {"torch_dtype": "float16"}, shapes_of(native_state(LLAMA)), 2, there=0)
    index = json.loads((tmp_path / INDEX).read_bytes())
    index["metadata"]["total_size"] = total - 2
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as caught:
        analysed(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / INDEX}: metadata.total_size = {total - 2}: leaves {total - 2} bytes for the 30 tensors of absent "
        f"files, as model.embed_tokens.weight, but by the config they have {total // 2} numbers, {total} bytes in "
        "float16"
    )


def test_names_of_an_index_that_do_not_fit(tmp_path: Path) -> None:
    stored = shapes_of(native_state(LLAMA))
    write_headers(tmp_path, LLAMA | {"num_hidden_layers": 2}, stored, 2, there=0)
    with pytest.raises(
        CheckpointError, match=r"9 surplus: model\.layers\.2\.\S+ in model-0000\d-of-00002\.safetensors"
    ):
        analysed(tmp_path)
    write_headers(tmp_path, LLAMA | {"num_hidden_layers": 4}, stored, 2, there=0)
    with pytest.raises(CheckpointError, match=r"9 missing: model\.layers\.3\.input_layernorm\.weight \(64,\), "):
        analysed(tmp_path)


@pytest.mark.parametrize("total", [None, "quantised"])
def test_an_index_whose_bytes_say_nothing(total: str | None, tmp_path: Path) -> None:
    quantised = {"quantization_config": {"quant_method": "fp8"}} if total else {}
    write_headers(tmp_path, LLAMA | quantised, shapes_of(native_state(LLAMA)), 2, there=0)
    if total is None:
        index = json.loads((tmp_path / INDEX).read_bytes())
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": index["weight_map"]}))
    analysis = analysed(tmp_path)
    assert by_checkpoint(analysis) == {}
    reasons = {
        None: f"{INDEX} has no metadata.total_size",
        "quantised": f"of a quantised checkpoint {INDEX} does not say how many there are",
    }
    words = "30 tensors in 2 files, 2 of them absent, fit the config by names; they are not counted"
    assert analysis.notes[-1] == f"Checkpoint: {words}: {reasons[total]}."


def test_pointers_of_git_lfs_are_absent_files(tmp_path: Path) -> None:
    write_headers(tmp_path, LLAMA, shapes_of(native_state(LLAMA)), 2, there=0)
    for number in (1, 2):
        (tmp_path / f"model-0000{number}-of-00002.safetensors").write_bytes(POINTER)
    assert by_checkpoint(analysed(tmp_path)) == {"parameters": numbers_of(build(LLAMA, device="meta"))[0]}


# --- What does not fit -----------------------------------------------------------------------------------------

Change = Callable[[State], object]
MISFITS: dict[str, tuple[dict[str, Any], Change, str]] = {
    "missing": (LLAMA, lambda s: s.pop("model.norm.weight"), "1 missing: model.norm.weight (64,)"),
    "surplus": (
        LLAMA,
        lambda s: s.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}),
        f"1 surplus: model.layers.0.self_attn.q_proj.bias in {SINGLE}",
    ),
    "misshapen": (
        LLAMA,
        lambda s: s.update({"lm_head.weight": torch.zeros(64, 96)}),
        f"1 misshapen: lm_head.weight in {SINGLE} has shape (64, 96), must be (96, 64)",
    ),
    "untied": (TIED, lambda s: s.update({"lm_head.weight": torch.zeros(95, 64)}), "1 misshapen: lm_head.weight in "),
    "no head": (LLAMA, lambda s: s.pop("lm_head.weight"), "1 missing: lm_head.weight (96, 64)"),
    "expert": (
        DEEPSEEK_V3,
        lambda s: s.pop(f"{EXPERTS}.7.up_proj.weight"),
        f"1 missing: {EXPERTS}.7.up_proj.weight (24, 64)",
    ),
    "of mtp": (
        DEEPSEEK_V3,
        lambda s: s.pop("model.layers.4.eh_proj.weight"),
        "1 missing: model.layers.4.eh_proj.weight (64, 128)",
    ),
    "copy in mtp": (
        DEEPSEEK_V3,
        lambda s: s.update({"model.layers.4.embed_tokens.weight": torch.zeros(96, 65)}),
        f"1 misshapen: model.layers.4.embed_tokens.weight in {SINGLE} has shape (96, 65), must be (96, 64)",
    ),
    "correction bias": (
        DEEPSEEK_V3,
        lambda s: s.pop("model.layers.1.mlp.gate.e_score_correction_bias"),
        "1 missing: model.layers.1.mlp.gate.e_score_correction_bias (16,)",
    ),
}


@pytest.mark.parametrize(("fields", "change", "said"), MISFITS.values(), ids=MISFITS.keys())
def test_the_command_names_tensors_and_exits_2(
    fields: dict[str, Any], change: Change, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = separate_experts(native_state(fields) | (mtp_state(fields) if fields is DEEPSEEK_V3 else {}))
    change(state)
    write(tmp_path, fields, state)
    assert main(["--model_config", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {tmp_path}: tensors that do not fit config.json: {said}")
    assert captured.err.endswith("; a config.json in place of its folder is read without the weights\n")
    assert captured.err.count("\n") == 1
    assert main(["--model_config", str(tmp_path / "config.json"), "--json"]) == 0


def test_a_config_of_another_size_names_the_tensors(tmp_path: Path) -> None:
    written(tmp_path, LLAMA | {"intermediate_size": 128}, shapes_of(native_state(LLAMA)))
    with pytest.raises(UserError) as caught:
        analysed(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: tensors that do not fit config.json: 9 misshapen: model.layers.0.mlp.gate_proj.weight in "
        "model.safetensors has shape (112, 64), must be (128, 64), model.layers.0.mlp.up_proj.weight in "
        "model.safetensors has shape (112, 64), must be (128, 64), model.layers.0.mlp.down_proj.weight in "
        "model.safetensors has shape (64, 112), must be (64, 128), …"
    )


def test_a_broken_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, LLAMA, native_state(LLAMA)) / SINGLE
    file.write_bytes(file.read_bytes()[:-1])
    assert main(["--model_config", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {file}: not a whole safetensors file: ")


@pytest.mark.parametrize("name", ["weights.safetensors", "model-00001-of-00001.safetensors"])
def test_a_file_of_another_name_is_compared(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = native_state(LLAMA)
    (write(tmp_path, LLAMA, state) / SINGLE).rename(tmp_path / name)
    expected = {"parameters": sum(tensor.numel() for tensor in state.values())}
    assert by_checkpoint(analysed(tmp_path)) == expected
    del state["model.norm.weight"]
    (write(tmp_path, LLAMA, state) / SINGLE).rename(tmp_path / name)
    assert main(["--model_config", str(tmp_path)]) == 2
    said = "tensors that do not fit config.json: 1 missing: model.norm.weight (64,); a config.json"
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: {said}")


# --- No weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("other.txt", b"", None),
        ("pytorch_model.bin", b"", "pytorch_model.bin is a pickle, which is never read"),
        (SINGLE, POINTER, "model.safetensors is a pointer of Git LFS, not the weights"),
        ("adapter_model.safetensors", b"", "adapter_model.safetensors has the weights of an adapter, not the model's"),
        (
            "model-00001-of-00002.safetensors",
            b"{}",
            f"model-00002-of-00002.safetensors is not there, and there is no {INDEX}",
        ),
    ],
)
def test_no_weights_no_witness(file: str, content: bytes, reason: str | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    plain = analysed(tmp_path)
    (tmp_path / file).write_bytes(content)
    analysis = analysed(tmp_path)
    assert analysis.agreement == plain.agreement
    assert by_checkpoint(analysis) == {}
    assert analysis.notes == (
        plain.notes if reason is None else (*plain.notes, f"Checkpoint: not compared, because {reason}.")
    )
