"""Building: device, dtype, first values, speed; and that specs go to JSON and back."""

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

import torch_models
from tests.shrunken import DEEPSEEK_V3, LLAMA
from torch_models import build, build_mtp, build_training_model, load_checkpoint, load_mtp_checkpoint, read_spec
from torch_models.errors import UserError
from torch_models.fields.config import FAMILIES, spec_from_fields
from torch_models.fields.file import read_config
from torch_models.spec import ModelSpec

CONFIGS = ["llama_7b_config.json", "llama_3_8b_config.json", "deepseek_v3_config.json"]


def test_deepseek_v3_is_built_in_well_under_a_second() -> None:
    build("llama_7b_config.json", device="meta")
    start = time.perf_counter()
    model = build("deepseek_v3_config.json", device="meta")
    assert time.perf_counter() - start < 0.7
    assert all(parameter.is_meta for parameter in model.parameters())


def test_device_and_dtype() -> None:
    spec = spec_from_fields(DEEPSEEK_V3, "x")
    default = torch.get_default_dtype()
    model = build(spec, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}  # correction biases
    assert {parameter.dtype for parameter in build(spec).parameters()} == {torch.float32}
    assert torch.get_default_dtype() == default


@pytest.mark.parametrize(
    ("placement", "said"),
    [
        ({"device": "no_such"}, "device = 'no_such': is not available here; must be cpu"),
        ({"device": "cpu:x"}, "device = 'cpu:x': is not available here; must be cpu"),
        ({"device": "cuda:99"}, "device = 'cuda:99': is not available here; must be cpu"),
        ({"device": None}, "device = 'None': is not available here"),
        ({"dtype": torch.int8}, "dtype = 'torch.int8': must be one of torch.float32, torch.bfloat16"),
        ({"dtype": torch.float8_e4m3fn}, "dtype = 'torch.float8_e4m3fn': must be one of torch.float32"),
        ({"dtype": "bfloat16"}, "dtype = 'bfloat16': must be one of torch.float32, torch.bfloat16"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_device_or_a_dtype_that_cannot_be(placement: dict[str, Any], said: str, tmp_path: Path) -> None:
    spec = spec_from_fields(DEEPSEEK_V3, "x")
    for create, what in (
        (build, spec),
        (build_mtp, spec),
        (load_checkpoint, tmp_path),
        (load_mtp_checkpoint, tmp_path),
    ):
        with pytest.raises(UserError, match=f"^{said}"):
            create(what, **placement)


def test_a_tied_weight_stays_one() -> None:
    spec = spec_from_fields(LLAMA | {"tie_word_embeddings": True}, "x")
    for create in (build, build_training_model):
        stored = create(spec).state_dict()
        model = create(spec, device="meta")
        expected = [parameter.numel() for parameter in model.parameters()]
        model.load_state_dict(stored, assign=True)
        assert [parameter.numel() for parameter in model.parameters()] == expected
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert torch.equal(model.lm_head.weight, stored["lm_head.weight"])
        model.to("meta").to_empty(device="cpu").to(torch.bfloat16)
        assert [parameter.numel() for parameter in model.parameters()] == expected
        assert model.lm_head.weight is model.model.embed_tokens.weight


def test_first_values() -> None:
    torch.manual_seed(0)
    model = build(spec_from_fields(LLAMA | {"attention_bias": True}, "x"))
    weight, norm, bias = (
        model.state_dict()[f"model.layers.0.{name}"]
        for name in ("mlp.up_proj.weight", "input_layernorm.weight", "self_attn.q_proj.bias")
    )
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(norm, torch.ones_like(norm))
    assert torch.equal(bias, torch.zeros_like(bias))


def test_bf16_follows_fp32() -> None:
    torch.manual_seed(0)
    for fields in (LLAMA, DEEPSEEK_V3):
        exact = build(spec_from_fields(fields, "x"))
        rounded = build(spec_from_fields(fields, "x"), dtype=torch.bfloat16)
        rounded.load_state_dict(exact.state_dict())
        ids = torch.randint(0, 96, (1, 40))
        torch.testing.assert_close(rounded(ids).float(), exact(ids), rtol=0.1, atol=0.05)


def test_a_state_dict_of_another_shape_is_refused() -> None:
    model = build(spec_from_fields(LLAMA, "x"))
    other = build(spec_from_fields(LLAMA | {"vocab_size": 97}, "x"))
    with pytest.raises(RuntimeError, match=r"lm_head\.weight"):
        model.load_state_dict(other.state_dict())


def test_mtp_layers_stand_beside_the_model() -> None:
    assert len(build_mtp("deepseek_v3_config.json", device="meta")) == 1
    assert len(build_mtp("llama_7b_config.json", device="meta")) == 0
    assert not any("eh_proj" in name for name in build("deepseek_v3_config.json", device="meta").state_dict())


def test_building_does_not_hide_the_function() -> None:
    build("llama_7b_config.json", device="meta")
    assert callable(torch_models.build)


@pytest.mark.parametrize("config", CONFIGS)
def test_specs_survive_json(config: str) -> None:
    spec = read_spec(config)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=ModelSpec) == spec


def test_every_bundled_config_says_where_its_numbers_come_from() -> None:
    folder = Path(torch_models.__file__).parent.parent / "configs"
    names = sorted(path.name for path in folder.glob("*_config.json") if path.name != "my_model_config.json")
    assert set(CONFIGS) <= set(names)
    sources = {name: read_config(folder / name)[1]["_source"] for name in names}
    assert all("arXiv" in source or "config.json of " in source for source in sources.values())
    # No size of Gemma-4 Unified has a file: its text model is Gemma-4's, under another name.
    assert {read_spec(folder / name).model_type for name in names} == set(FAMILIES) - {"gemma4_unified_text"}
