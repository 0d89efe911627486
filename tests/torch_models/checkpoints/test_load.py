"""Checkpoint folders into the native modules: every layout, what is passed over, and what loading holds in memory."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.checkpoints import (
    EXPERTS,
    INDEX,
    SINGLE,
    TIED,
    State,
    assert_same_tensors,
    in_native_names,
    mtp_state,
    native_state,
    separate_experts,
    write,
    write_shards,
)
from tests.shrunken import DEEPSEEK_V3, FAMILIES, LLAMA
from torch_models import build, load_checkpoint, load_mtp_checkpoint
from torch_models.checkpoints import files as checkpoint_files
from torch_models.checkpoints.headers import stored_tensors
from torch_models.errors import CheckpointError, UserError
from torch_models.families import deepseek_v3
from torch_models.fields.config import spec_from_fields
from torch_models.fields.stored_names import SEPARATE_EXPERTS, Place, StoredName, parts_of, places_of

ROOT = Path(__file__).resolve().parents[3]


# --- What transformers saves -----------------------------------------------------------------------------------


@pytest.mark.parametrize("max_shard_size", ["60KB", "1GB"], ids=["sharded", "one file"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("fields", [LLAMA, TIED, DEEPSEEK_V3], ids=["llama", "llama tied", "deepseek_v3"])
def test_what_transformers_saved_gives_its_logits(
    fields: dict[str, Any], dtype: torch.dtype, max_shard_size: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    reference: Any = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**fields))
    with torch.no_grad():
        for tensor in reference.state_dict().values():
            tensor.normal_(std=0.3)
    reference.to(dtype).save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / INDEX).exists() == (max_shard_size == "60KB")

    model = load_checkpoint(tmp_path)
    assert_same_tensors(model, {name: tensor.float() for name, tensor in reference.state_dict().items()})
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in model.parameters())
    ids = torch.randint(0, 96, (2, 48), generator=torch.Generator().manual_seed(1))
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(model(ids), reference(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


OTHER_FAMILIES = {name: fields for name, fields in FAMILIES.items() if name not in ("llama", "deepseek_v3", "kimi_k2")}


@pytest.mark.parametrize("fields", OTHER_FAMILIES.values(), ids=OTHER_FAMILIES.keys())
def test_every_family_as_transformers_saves_it(fields: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference: Any = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**fields))
    reference.save_pretrained(tmp_path)
    assert_same_tensors(load_checkpoint(tmp_path), in_native_names(reference.state_dict(), fields["model_type"]))


def test_kernels_and_name_are_passed_on(tmp_path: Path) -> None:
    folder = tmp_path / "my-llama"
    folder.mkdir()
    model = load_checkpoint(write(folder, LLAMA, native_state(LLAMA)), kernels="eager")
    assert model.spec.name == "my-llama"
    assert model.model.norm.kernels == "eager"


# --- dtype and device ------------------------------------------------------------------------------------------


def test_the_caller_chooses_the_dtype_and_correction_biases_stay_fp32(tmp_path: Path) -> None:
    state = native_state(DEEPSEEK_V3)
    folder = write(tmp_path, DEEPSEEK_V3, {name: tensor.to(torch.float16) for name, tensor in state.items()})
    model = load_checkpoint(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
    assert len(list(model.buffers())) == 3
    assert_same_tensors(model, {name: tensor.half().float() for name, tensor in state.items()})
    assert torch.get_default_dtype() == torch.float32


def test_on_meta_all_is_checked_and_nothing_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = native_state(TIED)
    folder = write(tmp_path, TIED, state | {"lm_head.weight": torch.zeros(96, 64)})  # the values differ; not read
    monkeypatch.setattr(checkpoint_files, "_openings", lambda stored: pytest.fail("reads tensors"))
    assert all(parameter.is_meta for parameter in load_checkpoint(folder, device="meta").parameters())
    write(tmp_path, TIED, state | {"model.norm.weight": torch.zeros(65)})
    with pytest.raises(CheckpointError, match=r"1 misshapen: model\.norm\.weight"):
        load_checkpoint(folder, device="meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(tmp_path: Path) -> None:
    state = native_state(DEEPSEEK_V3)
    model = load_checkpoint(write(tmp_path, DEEPSEEK_V3, separate_experts(state)), device="cuda", dtype=torch.bfloat16)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cuda"}
    assert_same_tensors(model.cpu(), state)


# --- Layouts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [dict, separate_experts], ids=["stacked", "per expert"])
@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "sharded"])
def test_experts_stacked_or_one_by_one(layout: Callable[[State], State], sharded: bool, tmp_path: Path) -> None:
    state = native_state(DEEPSEEK_V3)
    (write_shards if sharded else write)(tmp_path, DEEPSEEK_V3, layout(state))
    assert_same_tensors(load_checkpoint(tmp_path), state)


def test_gate_stands_above_up_in_the_stacked_tensor(tmp_path: Path) -> None:
    stored = separate_experts(native_state(DEEPSEEK_V3))
    model = load_checkpoint(write(tmp_path, DEEPSEEK_V3, stored))
    stacked = model.state_dict()[f"{EXPERTS}.gate_up_proj"]
    assert stacked.shape == (16, 48, 64)
    assert torch.equal(stacked[7, :24], stored[f"{EXPERTS}.7.gate_proj.weight"])
    assert torch.equal(stacked[7, 24:], stored[f"{EXPERTS}.7.up_proj.weight"])


def test_old_rotary_buffers_are_passed_over(tmp_path: Path) -> None:
    state = native_state(LLAMA)
    buffers = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4) for layer in range(3)}
    buffers |= {"model.rotary_emb.inv_freq": torch.ones(4)}
    assert_same_tensors(load_checkpoint(write(tmp_path, LLAMA, state | buffers)), state)


def test_families_may_have_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixtral's names, on a DeepSeek-V3."""
    names = (
        StoredName("block_sparse_moe.gate.weight", "mlp.gate.weight"),
        StoredName("block_sparse_moe.experts.{expert}.w1.weight", "mlp.experts.gate_up_proj", half=0),
        StoredName("block_sparse_moe.experts.{expert}.w3.weight", "mlp.experts.gate_up_proj", half=1),
        StoredName("block_sparse_moe.experts.{expert}.w2.weight", "mlp.experts.down_proj"),
    )
    monkeypatch.setattr(deepseek_v3.Config, "stored_names", names)
    state = native_state(DEEPSEEK_V3)
    stored = {}
    for name, tensor in separate_experts(state).items():
        name = name.replace("gate_proj", "w1").replace("up_proj", "w3").replace("down_proj", "w2")
        is_moe = "mlp.experts" in name or "mlp.gate.weight" in name
        if not is_moe:
            name = name.replace("w1", "gate_proj").replace("w3", "up_proj").replace("w2", "down_proj")
        stored[name.replace("mlp.", "block_sparse_moe.") if is_moe else name] = tensor
    assert f"{EXPERTS.replace('mlp', 'block_sparse_moe')}.7.w3.weight" in stored
    assert "model.layers.1.block_sparse_moe.gate.weight" in stored
    assert_same_tensors(load_checkpoint(write(tmp_path, DEEPSEEK_V3, stored)), state)
    del stored["model.layers.2.block_sparse_moe.experts.5.w3.weight"]
    with pytest.raises(CheckpointError, match=r"1 missing: model\.layers\.2\.block_sparse_moe\.experts\.5\.w3\.weight"):
        load_checkpoint(write(tmp_path, DEEPSEEK_V3, stored))


@pytest.mark.parametrize(
    ("stored", "place"),
    [
        ("model.norm.weight", Place("model.norm.weight")),
        (f"{EXPERTS}.12.up_proj.weight", Place(f"{EXPERTS}.gate_up_proj", 12, 1)),
        (f"{EXPERTS}.0.gate_proj.weight", Place(f"{EXPERTS}.gate_up_proj", 0, 0)),
        ("0.mlp.experts.3.down_proj.weight", Place("0.mlp.experts.down_proj", 3)),
        (f"{EXPERTS}.03.down_proj.weight", Place(f"{EXPERTS}.03.down_proj.weight")),  # would stand for 3 twice
        (f"{EXPERTS}.3.down_proj.weight_scale", Place(f"{EXPERTS}.3.down_proj.weight_scale")),
        ("model.layers.1.my_mlp.experts.3.down_proj.weight", Place("model.layers.1.my_mlp.experts.3.down_proj.weight")),
    ],
)
def test_place_of_a_name(stored: str, place: Place) -> None:
    assert places_of(stored, SEPARATE_EXPERTS) == (place,)


def test_parts_of_a_stacked_tensor_are_named_as_stored() -> None:
    parts = parts_of(f"{EXPERTS}.gate_up_proj", 2, SEPARATE_EXPERTS)
    assert list(parts.values()) == [
        f"{EXPERTS}.{expert}.{half}_proj.weight" for half in ("gate", "up") for expert in (0, 1)
    ]
    assert all(places_of(name, SEPARATE_EXPERTS) == (part,) for part, name in parts.items())
    assert parts_of("model.norm.weight", 64, SEPARATE_EXPERTS) == {Place("model.norm.weight"): "model.norm.weight"}


# --- Tied heads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["model.embed_tokens.weight"], ["lm_head.weight"], None], ids=str)
def test_a_tied_head_is_stored_under_either_name_or_both(names: list[str] | None, tmp_path: Path) -> None:
    state = native_state(TIED)
    embedding = state.pop("model.embed_tokens.weight")
    both = ["model.embed_tokens.weight", "lm_head.weight"]
    write(tmp_path, TIED, state | {name: embedding.clone() for name in names or both})
    model = load_checkpoint(tmp_path, dtype=torch.bfloat16)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, embedding.bfloat16())


def test_a_tied_head_that_differs_is_refused(tmp_path: Path) -> None:
    state = native_state(TIED)
    state["lm_head.weight"] = state["model.embed_tokens.weight"] + 1
    folder = write(tmp_path, TIED, state)
    rule = "lm_head.weight differs from model.embed_tokens.weight, but must be a copy of it, as tie_word_embeddings is"
    with pytest.raises(CheckpointError, match=f"^{re.escape(f'{folder / SINGLE}: {rule}')}"):
        load_checkpoint(folder)


def test_an_untied_head_must_be_stored(tmp_path: Path) -> None:
    folder = write(tmp_path, LLAMA, native_state(TIED))
    with pytest.raises(CheckpointError, match=r"1 missing: lm_head\.weight \(96, 64\)$"):
        load_checkpoint(folder)


# --- Multi-token prediction ------------------------------------------------------------------------------------


def test_mtp_layers_are_loaded_when_asked_for_and_else_passed_over(tmp_path: Path) -> None:
    state, mtp = native_state(DEEPSEEK_V3), mtp_state(DEEPSEEK_V3)
    write_shards(tmp_path, DEEPSEEK_V3, separate_experts(state | mtp))
    assert_same_tensors(load_checkpoint(tmp_path), state)
    (layer,) = load_mtp_checkpoint(tmp_path, dtype=torch.bfloat16)
    expected = {name.removeprefix("model.layers.4."): tensor for name, tensor in mtp.items()}
    assert len(layer.state_dict()) == len(expected) - 2
    assert_same_tensors(layer, {name: tensor for name, tensor in expected.items() if name in layer.state_dict()})
    assert layer.eh_proj.weight.dtype == torch.bfloat16
    assert layer.mlp.gate.e_score_correction_bias.dtype == torch.float32


def test_several_mtp_layers_are_numbered_on(tmp_path: Path) -> None:
    fields = DEEPSEEK_V3 | {"num_nextn_predict_layers": 2}
    mtp = mtp_state(fields)
    write(tmp_path, fields, native_state(fields) | mtp)
    layers = load_mtp_checkpoint(tmp_path)
    assert len(layers) == 2
    assert torch.equal(layers[1].eh_proj.weight, mtp["model.layers.5.eh_proj.weight"])


def test_a_model_without_mtp_layers_has_none_to_load(tmp_path: Path) -> None:
    assert len(load_mtp_checkpoint(write(tmp_path, LLAMA, native_state(LLAMA)))) == 0


def test_mtp_tensors_may_be_absent_until_asked_for(tmp_path: Path) -> None:
    state = native_state(DEEPSEEK_V3)
    folder = write(tmp_path, DEEPSEEK_V3, state)
    assert_same_tensors(load_checkpoint(folder), state)
    with pytest.raises(CheckpointError, match=r"missing: model\.layers\.4\.input_layernorm\.weight \(64,\)"):
        load_mtp_checkpoint(folder)


def test_layers_beyond_those_that_the_config_has_are_surplus(tmp_path: Path) -> None:
    fields = DEEPSEEK_V3 | {"num_nextn_predict_layers": 0}
    folder = write(tmp_path, fields, native_state(fields) | mtp_state(DEEPSEEK_V3))
    with pytest.raises(CheckpointError, match=r"surplus: model\.layers\.4\."):
        load_checkpoint(folder)


# --- The extra, and memory -------------------------------------------------------------------------------------


def test_without_safetensors_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, LLAMA, native_state(LLAMA))
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError) as caught:
        load_checkpoint(tmp_path)
    assert str(caught.value).replace(str(tmp_path), "FOLDER") == (
        f"FOLDER/{SINGLE}: reading it needs safetensors; install model-training-cost-analysis[checkpoints]"
    )


def test_a_file_is_opened_anew_after_so_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = native_state(LLAMA)
    stored = stored_tensors(write(tmp_path, LLAMA, state))
    monkeypatch.setattr(checkpoint_files, "BYTES_PER_OPENING", 64 * 96 * 4)
    openings = checkpoint_files._openings(stored)
    sizes = [[state[name].nbytes for name in names] for _, names in openings]
    assert sorted(name for _, names in openings for name in names) == sorted(state)
    assert all(sum(size) <= 64 * 96 * 4 or len(size) == 1 for size in sizes)
    assert any(len(size) > 1 for size in sizes)
    assert any(sum(size) > 64 * 96 * 4 for size in sizes), "a tensor larger than that is read all the same"
    for name, tensor in checkpoint_files.stream(stored):
        assert torch.equal(tensor, load_file(tmp_path / SINGLE)[name])


WIDE = {"hidden_size": 1024, "vocab_size": 8192, "intermediate_size": 2048}
LARGE = {
    "one file": LLAMA | WIDE | {"intermediate_size": 4096, "num_hidden_layers": 4},
    "per expert": DEEPSEEK_V3 | WIDE | {"moe_intermediate_size": 512, "n_routed_experts": 16, "num_hidden_layers": 3},
}
PEAK_SCRIPT = """
import sys, torch
from torch_models import load_checkpoint
def high_water():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
load_checkpoint(sys.argv[1], device="meta")  # all that is loaded once
before = high_water()
model = load_checkpoint(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
print(high_water() - before, sum(tensor.nbytes for tensor in model.state_dict().values()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's record of the peak")
@pytest.mark.parametrize(("layout", "dtype"), [("one file", "float32"), ("per expert", "bfloat16")])
def test_loading_holds_the_model_and_little_else(layout: str, dtype: str, tmp_path: Path) -> None:
    """Resident memory at its highest, file pages included, in a process of its own."""
    fields = LARGE[layout]
    shapes = build(spec_from_fields(fields, "x"), device="meta").state_dict()
    write(tmp_path, fields, separate_experts({name: torch.zeros(tensor.shape) for name, tensor in shapes.items()}))
    stored = (tmp_path / SINGLE).stat().st_size
    assert stored > 250e6
    process = subprocess.run(
        [sys.executable, "-c", PEAK_SCRIPT, tmp_path, dtype], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.stderr == ""
    grown, model = (int(number) for number in process.stdout.split())
    assert model == pytest.approx(stored if dtype == "float32" else stored / 2, rel=0.01)
    assert 0.9 * model < grown < model + 100e6  # as README says
