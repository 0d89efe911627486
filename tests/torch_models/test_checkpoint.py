"""Checkpoint folders into the native modules: every layout, every mistake in one, and what loading holds in memory."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.shrunken import DEEPSEEK_V3, FAMILIES, LLAMA
from torch_models import build, build_mtp, checkpoint_files, load_checkpoint, load_mtp_checkpoint
from torch_models.checkpoint_names import SEPARATE_EXPERTS, Place, StoredName, parts_of, place_of
from torch_models.config import spec_from_fields
from torch_models.errors import CheckpointError, ConfigError, UserError
from torch_models.families import deepseek_v3

ROOT = Path(__file__).resolve().parent.parent.parent
TIED = LLAMA | {"tie_word_embeddings": True}
EXPERTS = "model.layers.1.mlp.experts"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
State = dict[str, Tensor]


def random_state(module: nn.Module) -> State:
    """The module's tensors, drawn anew; what is tied once."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(tensor.shape, generator=generator) * 0.3
        for name, tensor in module.state_dict().items()
        if not (name == "lm_head.weight" and module.spec.tie_word_embeddings)
    }


def native_state(fields: dict[str, Any]) -> State:
    return random_state(build(spec_from_fields(fields, "x")))


def separate_experts(state: State) -> State:
    """The same tensors as DeepSeek-V3 publishes them: one per expert and projection."""
    separate = {}
    for name, tensor in state.items():
        prefix, _, projection = name.rpartition(".")
        if not prefix.endswith("mlp.experts"):
            separate[name] = tensor
            continue
        for expert, share in enumerate(tensor):
            parts = {"gate": share.chunk(2)[0], "up": share.chunk(2)[1]} if projection == "gate_up_proj" else {}
            for part, rows in (parts or {"down": share}).items():
                separate[f"{prefix}.{expert}.{part}_proj.weight"] = rows.contiguous()
    return separate


def mtp_state(fields: dict[str, Any]) -> State:
    """One published MTP layer, with the copies of embedding and head that published checkpoints have."""
    layers = build_mtp(spec_from_fields(fields, "x"))
    generator = torch.Generator().manual_seed(4)
    first = fields["num_hidden_layers"]
    state = {}
    for name, tensor in layers.state_dict().items():
        depth, _, rest = name.partition(".")
        state[f"model.layers.{first + int(depth)}.{rest}"] = torch.randn(tensor.shape, generator=generator)
    copies = {name: torch.zeros(96, 64) for name in ("embed_tokens.weight", "shared_head.head.weight")}
    return state | {f"model.layers.{first}.{name}": copy for name, copy in copies.items()}


def write(folder: Path, fields: dict[str, Any], state: State) -> Path:
    """A checkpoint folder of one file."""
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(state, folder / SINGLE)
    return folder


def write_shards(folder: Path, fields: dict[str, Any], state: State, shards: int = 3) -> dict[str, str]:
    """A checkpoint folder of several files, and the map of its index."""
    (folder / "config.json").write_text(json.dumps(fields))
    names = list(state)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: state[name] for name in names[number::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


def assert_same_tensors(module: nn.Module, expected: State) -> None:
    state = module.state_dict()
    assert {name for name in state if name not in expected} <= {"lm_head.weight"}
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor.to(state[name].dtype), rtol=0, atol=0, msg=name)


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
    assert_same_tensors(load_checkpoint(tmp_path), reference.state_dict())


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
    assert place_of(stored, SEPARATE_EXPERTS) == place


def test_parts_of_a_stacked_tensor_are_named_as_stored() -> None:
    parts = parts_of(f"{EXPERTS}.gate_up_proj", 2, SEPARATE_EXPERTS)
    assert list(parts.values()) == [
        f"{EXPERTS}.{expert}.{half}_proj.weight" for half in ("gate", "up") for expert in (0, 1)
    ]
    assert all(place_of(name, SEPARATE_EXPERTS) == part for part, name in parts.items())
    assert parts_of("model.norm.weight", 64, SEPARATE_EXPERTS) == {}


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
    rule = "lm_head.weight differs from model.embed_tokens.weight, whose copy it must be where tie_word_embeddings is"
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
    assert refused(tmp_path, ConfigError).startswith("FOLDER/config.json: sliding_window = 4: this field is not under")


def test_missing_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    nothing = "FOLDER: holds neither model.safetensors nor model.safetensors.index.json"
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
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert refused(tmp_path).startswith("FOLDER/model.safetensors: not a whole safetensors file: ")


def test_truncated_shard(tmp_path: Path) -> None:
    weight_map = write_shards(tmp_path, LLAMA, native_state(LLAMA))
    file = tmp_path / sorted(weight_map.values())[-1]
    file.write_bytes(file.read_bytes()[:-10])
    assert refused(tmp_path).startswith(f"FOLDER/{file.name}: not a whole safetensors file: ")


def test_shard_that_does_not_exist(tmp_path: Path) -> None:
    weight_map = write_shards(tmp_path, LLAMA, native_state(LLAMA))
    (tmp_path / weight_map["model.norm.weight"]).unlink()
    first = next(name for name, shard in weight_map.items() if shard == weight_map["model.norm.weight"])
    expected = f"FOLDER/{INDEX}: {first} is in {weight_map[first]!r}, which is no file of this folder"
    assert refused(tmp_path) == expected


def test_shard_outside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    weight_map = write_shards(folder, LLAMA, native_state(LLAMA))
    shard = weight_map["model.norm.weight"]
    (folder / shard).rename(tmp_path / shard)
    write_index(folder, {name: f"../{file}" if file == shard else file for name, file in weight_map.items()})
    assert refused(folder).endswith(f"is in '../{shard}', which is no file of this folder")


def test_tensor_that_only_the_index_has(tmp_path: Path) -> None:
    weight_map = write_shards(tmp_path, LLAMA, native_state(LLAMA))
    shard = weight_map["model.norm.weight"]
    write_index(tmp_path, weight_map | {"model.more": shard})
    assert refused(tmp_path) == f"FOLDER/{INDEX}: model.more is in {shard}, but that file does not hold it"


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


# --- The extra, and memory -------------------------------------------------------------------------------------


def test_without_safetensors_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, LLAMA, native_state(LLAMA))
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert refused(tmp_path, UserError) == (
        f"FOLDER/{SINGLE}: reading it needs safetensors; install model-training-cost-analysis[checkpoints]"
    )


def test_a_file_is_opened_anew_after_so_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = native_state(LLAMA)
    stored = checkpoint_files.stored_tensors(write(tmp_path, LLAMA, state))
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
