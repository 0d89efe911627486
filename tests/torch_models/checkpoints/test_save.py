"""A saved model is read back bit for bit, by `load_checkpoint` and by transformers, under the published names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from tests.checkpoints import INDEX, SINGLE, State, analysed, by_checkpoint, in_native_names, numbers_of
from tests.shrunken import DEEPSEEK_V3, FAMILIES, GPT_OSS, KIMI_K2, LLAMA, MINIMAX_M2, MIXTRAL, QWEN2_MOE
from torch_models import CheckpointError, build, load_checkpoint, load_mtp_checkpoint, read_spec, save_checkpoint
from torch_models.checkpoints import gather
from torch_models.checkpoints.shards import Part, Shard, parts_to_store, shards_of
from torch_models.fields.config import FAMILIES as NATIVE
from torch_models.fields.config import family, model_from_fields
from torch_models.fields.stored_names import Place, places_of
from torch_models.modules.language_model import CausalLM
from torch_models.spec import ModelSpec

TIED = FAMILIES["smollm"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def drawn(fields: dict[str, Any], dtype: torch.dtype = torch.float32) -> CausalLM:
    """A model whose tensors, buffers too, all differ."""
    model = build(fields, dtype=dtype)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return model


def ids() -> torch.Tensor:
    return torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(1))


def assert_same_state(state: State, expected: State) -> None:
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype, name
        assert torch.equal(state[name], tensor), name


def stored(folder: Path) -> State:
    """The tensors of all weight files of a folder."""
    tensors: State = {}
    for file in sorted(folder.glob("*.safetensors")):
        part = load_file(file)
        assert not tensors.keys() & part.keys()
        tensors |= part
    return tensors


def by_transformers(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model as transformers reads it, and what it says of the tensors that it found.

    Kimi-K2 is no family of transformers, which stacks experts by `model_type`: it is read as DeepSeek-V3.
    """
    fields = json.loads((folder / "config.json").read_text())
    config: Any = None
    if fields["model_type"] == "kimi_k2":
        config = transformers.DeepseekV3Config.from_dict(fields | {"model_type": "deepseek_v3"})
    read: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, config=config, output_loading_info=True)
    return read


def as_transformers_has(state: State, dtype: torch.dtype) -> State:
    """The tensors in transformers' dtypes: it keeps DeepSeek-V3's correction biases in fp32, but not MiniMax-M2's."""
    rounded = ("mlp.e_score_correction_bias", "block_sparse_moe.e_score_correction_bias")
    return {name: tensor.to(dtype) if name.endswith(rounded) else tensor for name, tensor in state.items()}


# --- Every family ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES.keys())
def test_what_is_saved_is_read_back_bit_for_bit(fields: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    model, folder = drawn(fields, dtype), tmp_path / "saved"
    state = model.state_dict()
    save_checkpoint(model, folder, max_shard_bytes=sum(tensor.nbytes for tensor in state.values()) // 2)
    assert (folder / INDEX).is_file()

    loaded = load_checkpoint(folder, dtype=dtype)
    assert_same_state(loaded.state_dict(), state)
    assert torch.equal(loaded(ids()), model(ids()))

    theirs, found = by_transformers(folder)
    assert not any(found.values()), found
    assert theirs.dtype == dtype
    own = in_native_names(theirs.state_dict(), fields["model_type"])
    assert_same_state(own, as_transformers_has(state, dtype))
    if dtype == torch.float32:  # in bf16 other experts may be chosen
        torch.testing.assert_close(theirs(ids()).logits, model(ids()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES.keys())
def test_names_and_dtypes_are_those_that_transformers_saves(fields: dict[str, Any], tmp_path: Path) -> None:
    folder, again = tmp_path / "saved", tmp_path / "again"
    save_checkpoint(drawn(fields, torch.bfloat16), folder)
    by_transformers(folder)[0].save_pretrained(again)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", SINGLE]
    assert_same_state(as_transformers_has(stored(folder), torch.bfloat16), stored(again))
    with safe_open(folder / SINGLE, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES.keys())
def test_every_name_stands_for_the_place_that_it_was_taken_from(fields: dict[str, Any]) -> None:
    names = family(fields["model_type"]).Config.stored_names
    shapes = {name: tuple(tensor.shape) for name, tensor in build(fields, device="meta").state_dict().items()}
    parts = parts_to_store(shapes, dict.fromkeys(shapes, 2), fields["model_type"])
    assert {part.name: places_of(part.name, names) for part in parts} == {part.name: part.places for part in parts}
    assert {place.native for part in parts for place in part.places} == shapes.keys()


def test_layouts_by_name() -> None:
    def names(fields: dict[str, Any]) -> set[str]:
        shapes = {name: tuple(tensor.shape) for name, tensor in build(fields, device="meta").state_dict().items()}
        return {part.name for part in parts_to_store(shapes, dict.fromkeys(shapes, 2), fields["model_type"])}

    layer = "model.layers.1"
    assert {f"{layer}.mlp.experts.15.{part}_proj.weight" for part in ("gate", "up", "down")} <= names(DEEPSEEK_V3)
    assert {f"{layer}.block_sparse_moe.experts.5.{part}.weight" for part in ("w1", "w2", "w3")} <= names(MIXTRAL)
    assert f"{layer}.block_sparse_moe.gate.weight" in names(MIXTRAL)
    assert not any("mlp" in name for name in names(MIXTRAL))
    experts = {f"{layer}.block_sparse_moe.experts.7.{part}.weight" for part in ("w1", "w2", "w3")}
    assert {*experts, f"{layer}.block_sparse_moe.e_score_correction_bias"} <= names(MINIMAX_M2)
    assert not any("mlp" in name for name in names(MINIMAX_M2))
    shared = {f"{layer}.mlp.shared_expert.{part}_proj.weight" for part in ("gate", "up", "down")}
    assert {*shared, f"{layer}.mlp.shared_expert_gate.weight", f"{layer}.mlp.experts.7.up_proj.weight"} <= names(
        QWEN2_MOE
    )
    assert {f"{layer}.mlp.experts.gate_up_proj_bias", f"{layer}.mlp.experts.down_proj"} <= names(GPT_OSS)


# --- Special tensors ---------------------------------------------------------------------------------------------


def test_a_tied_head_is_left_out(tmp_path: Path) -> None:
    model = drawn(TIED)
    save_checkpoint(model, tmp_path)
    assert "lm_head.weight" not in stored(tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_correction_biases_stay_fp32(tmp_path: Path) -> None:
    model = drawn(DEEPSEEK_V3, torch.bfloat16)
    save_checkpoint(model, tmp_path)
    wide = {name for name, tensor in stored(tmp_path).items() if tensor.dtype == torch.float32}
    assert wide == {f"model.layers.{layer}.mlp.gate.e_score_correction_bias" for layer in (1, 2, 3)}
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_model_of_two_dtypes_loses_nothing(tmp_path: Path) -> None:
    model = drawn(LLAMA, torch.bfloat16)
    model.model.norm.float()
    with torch.no_grad():
        model.model.norm.weight.add_(1e-5)
    save_checkpoint(model, tmp_path)
    theirs, _ = by_transformers(tmp_path)
    assert_same_state(theirs.state_dict(), {name: tensor.float() for name, tensor in model.state_dict().items()})


def test_tensors_that_are_not_contiguous(tmp_path: Path) -> None:
    model = drawn(LLAMA)
    projection = model.model.layers[0].get_submodule("mlp.up_proj")
    assert isinstance(projection.weight, nn.Parameter)
    projection.weight = nn.Parameter(projection.weight.detach().t().contiguous().t())
    assert not projection.weight.is_contiguous()
    save_checkpoint(model, tmp_path)
    assert_same_state(load_checkpoint(tmp_path).state_dict(), model.state_dict())


# --- Files -------------------------------------------------------------------------------------------------------


def test_files_are_as_large_as_allowed(tmp_path: Path) -> None:
    model, most = drawn(DEEPSEEK_V3), 100_000
    save_checkpoint(model, tmp_path, max_shard_bytes=most)
    index = json.loads((tmp_path / INDEX).read_text())
    files = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert files == [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    tensors = {name: load_file(tmp_path / name) for name in files}
    sizes = [sum(tensor.nbytes for tensor in part.values()) for part in tensors.values()]
    assert all(size <= most for size in sizes)
    assert all(sizes[number] + sizes[number + 1] > most for number in range(len(files) - 1))
    assert index["metadata"] == {"total_size": sum(sizes)}
    assert sum(sizes) == sum(tensor.nbytes for tensor in model.state_dict().values())
    assert index["weight_map"] == {name: file for file, part in tensors.items() for name in part}
    assert sorted(tmp_path.iterdir()) == sorted(tmp_path / name for name in (*files, INDEX, "config.json"))


def test_a_tensor_larger_than_a_file_may_be_has_its_own() -> None:
    parts = [Part(name, (Place(name),), (size,), size) for name, size in (("a", 3), ("b", 9), ("c", 2), ("d", 3))]
    first, second, third = shards_of(parts, 5)
    assert [[part.name for part in shard.parts] for shard in (first, second, third)] == [["a"], ["b"], ["c", "d"]]
    assert shards_of(parts, 17) == [Shard(SINGLE, tuple(parts))]


def test_the_analysis_finds_the_tensors_of_the_config(tmp_path: Path) -> None:
    model = drawn(DEEPSEEK_V3)
    save_checkpoint(model, tmp_path, max_shard_bytes=100_000)
    parameters, biases = numbers_of(model)
    assert by_checkpoint(analysed(tmp_path)) == {"parameters": parameters, "router_correction_bias": biases}
    with pytest.raises(CheckpointError, match=r"missing: model\.layers\.4\."):
        load_mtp_checkpoint(tmp_path)


def test_values_are_held_for_one_file_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    allocate = gather.allocate

    def noted(shard: Shard, tensors: State) -> State:
        values = allocate(shard, tensors)
        held.append(sum(tensor.nbytes for tensor in values.values()))
        return values

    monkeypatch.setattr("torch_models.checkpoints.save.allocate", noted)
    save_checkpoint(drawn(DEEPSEEK_V3), tmp_path, max_shard_bytes=100_000)
    assert len(held) == len(list(tmp_path.glob("*.safetensors")))
    assert max(held) <= 100_000


# --- The config --------------------------------------------------------------------------------------------------


def saved_config(fields: Any, tmp_path: Path) -> dict[str, Any]:
    save_checkpoint(build(fields), tmp_path / "saved")
    written: dict[str, Any] = json.loads((tmp_path / "saved" / "config.json").read_text())
    return written


@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES.keys())
def test_the_config_gives_the_same_spec(fields: dict[str, Any], tmp_path: Path) -> None:
    def model(spec: ModelSpec) -> dict[str, Any]:
        notes = ("name", "folder", "config_json", "defaulted_fields", "passed_over_fields")
        return {field: getattr(spec, field) for field in spec.__struct_fields__ if field not in notes}

    written = saved_config(fields, tmp_path)
    again = read_spec(tmp_path / "saved")
    assert model(again) == model(read_spec(fields))
    assert again.defaulted_fields == ()
    assert {field: written[field] for field in fields} == fields
    assert list(written) == sorted(written)


def test_fields_that_are_not_true_of_what_is_saved_are_left_out(tmp_path: Path) -> None:
    noted = {"_source": "here", "auto_map": {"AutoConfig": "code.Config"}, "quantization_config": {"bits": 4}}
    written = saved_config(LLAMA | noted | {"dtype": "float16", "bos_token_id": 1}, tmp_path)
    assert not noted.keys() & written.keys()
    assert "dtype" not in written
    assert (written["torch_dtype"], written["bos_token_id"]) == ("float32", 1)


def test_fields_have_the_names_that_transformers_reads(tmp_path: Path) -> None:
    renamed = {"hidden_size": "n_embd", "num_hidden_layers": "num_layers", "num_attention_heads": "n_head"}
    written = saved_config({renamed.get(field, field): value for field, value in LLAMA.items()}, tmp_path)
    assert {field: written[field] for field in LLAMA} == LLAMA
    assert not set(renamed.values()) & written.keys()


def test_the_defaults_taken_are_written(tmp_path: Path) -> None:
    written = saved_config(LLAMA, tmp_path)
    defaults = {"num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False}
    assert {field: written[field] for field in defaults} == defaults
    assert not defaults.keys() & LLAMA.keys()


def test_a_field_that_the_caller_ignored_is_not_in_the_model(tmp_path: Path) -> None:
    spec = read_spec(LLAMA | {"of_the_future": 1}, ignore_fields=["of_the_future"])
    assert "of_the_future" not in saved_config(spec, tmp_path)
    assert load_checkpoint(tmp_path / "saved").spec.num_layers == 3


@pytest.mark.parametrize("model_type", NATIVE)
def test_the_class_is_named_where_the_config_does_not(model_type: str, tmp_path: Path) -> None:
    fields = next(fields for fields in FAMILIES.values() if fields["model_type"] == model_type)
    written = saved_config({name: value for name, value in fields.items() if name != "architectures"}, tmp_path)
    assert hasattr(transformers, written["architectures"][0])
    assert written["architectures"] == fields["architectures"] or model_type == "deepseek_v2"


def test_a_text_part_has_a_config_of_its_own(tmp_path: Path) -> None:
    whole = {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "vision_config": {"hidden_size": 32},
        "image_token_index": 7,
        "tie_word_embeddings": False,
        "text_config": LLAMA | {"num_key_value_heads": 8, "tie_word_embeddings": True},
    }
    spec = model_from_fields(whole, "x", text_only=True)
    assert isinstance(spec, ModelSpec)
    written = saved_config(spec, tmp_path)
    assert (written["model_type"], written["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert not {"vision_config", "text_config", "image_token_index"} & written.keys()
    theirs, found = by_transformers(tmp_path / "saved")
    assert type(theirs) is transformers.LlamaForCausalLM
    assert not any(found.values())


def test_a_model_that_was_loaded_is_saved_again(tmp_path: Path) -> None:
    save_checkpoint(drawn(KIMI_K2), tmp_path / "first")
    save_checkpoint(load_checkpoint(tmp_path / "first"), tmp_path / "second")
    first, second = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("first", "second")
    )
    assert first == second


def test_a_null_that_stands_for_a_default_is_written_as_the_default(tmp_path: Path) -> None:
    """transformers refuses a null here."""
    save_checkpoint(drawn(LLAMA | {"initializer_range": None}), tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["initializer_range"] == 0.02
    assert transformers.AutoConfig.from_pretrained(tmp_path / "saved").initializer_range == 0.02
