"""A model to train is saved with its multi-token-prediction layers, and goes on from there."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.checkpoints import SINGLE
from tests.shrunken import DEEPSEEK_V3, FAMILIES, GLM4_MOE, LLAMA
from torch_models import (
    ArgumentError,
    CheckpointError,
    build_training_model,
    load_checkpoint,
    load_mtp_checkpoint,
    load_training_model,
    save_checkpoint,
)
from torch_models.training.model import TrainingModel

WITH_MTP = {
    "deepseek_v3": DEEPSEEK_V3,
    "two layers": DEEPSEEK_V3 | {"num_nextn_predict_layers": 2},
    "glm4_moe": GLM4_MOE | {"num_nextn_predict_layers": 1},
    "none": LLAMA,
    "tied": FAMILIES["smollm"],
}


def drawn(fields: dict[str, Any], **options: Any) -> TrainingModel:
    model = build_training_model(fields, **options)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, 96, (2, 24), generator=torch.Generator().manual_seed(1))
    return ids[:, :-1], ids[:, 1:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("fields", WITH_MTP.values(), ids=WITH_MTP.keys())
def test_training_goes_on_from_what_was_saved(fields: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    model = drawn(fields, dtype=dtype, mtp_weight=0.1, loss_chunk=10)
    save_checkpoint(model, tmp_path, max_shard_bytes=250_000)
    loaded = load_training_model(tmp_path, dtype=dtype, mtp_weight=0.1, loss_chunk=10)
    expected, state = model.state_dict(), loaded.state_dict()
    assert state.keys() == expected.keys()
    assert all(
        torch.equal(state[name], tensor) and state[name].dtype == tensor.dtype for name, tensor in expected.items()
    )
    assert torch.equal(loaded(*batch()), model(*batch()))


def test_layers_of_multi_token_prediction_are_named_as_published(tmp_path: Path) -> None:
    model = drawn(DEEPSEEK_V3)
    save_checkpoint(model, tmp_path)
    stored = load_file(tmp_path / SINGLE)
    names = {name.removeprefix("model.layers.4.") for name in stored if name.startswith("model.layers.4.")}
    assert {"eh_proj.weight", "enorm.weight", "hnorm.weight", "shared_head.norm.weight"} <= names
    assert {f"mlp.experts.15.{part}_proj.weight" for part in ("gate", "up", "down")} <= names
    assert torch.equal(stored["model.layers.4.mlp.gate.weight"], model.state_dict()["model.layers.4.mlp.gate.weight"])
    (layer,) = load_mtp_checkpoint(tmp_path)
    assert torch.equal(layer.eh_proj.weight, stored["model.layers.4.eh_proj.weight"])


def test_the_main_model_is_read_without_them(tmp_path: Path) -> None:
    model = drawn(DEEPSEEK_V3)
    save_checkpoint(model, tmp_path)
    expected = model.state_dict()
    main = load_checkpoint(tmp_path).state_dict()
    theirs, found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    for state in (main, theirs.state_dict()):
        assert state.keys() == {name for name in expected if not name.startswith("model.layers.4.")}
        assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    assert all(name.startswith("model.layers.4.") for name in found["unexpected_keys"])
    assert found["missing_keys"] == set()


def test_without_stored_layers_the_error_says_what_to_do(tmp_path: Path) -> None:
    save_checkpoint(drawn(DEEPSEEK_V3, mtp=False), tmp_path)
    missing = (
        r"missing: model\.layers\.4\.input_layernorm\.weight \(64,\), .*; mtp=False loads the model without multi-"
    )
    with pytest.raises(CheckpointError, match=missing):
        load_training_model(tmp_path)
    model = load_training_model(tmp_path, mtp=False)
    assert model.num_mtp_layers == 0
    assert torch.equal(model(*batch()), drawn(DEEPSEEK_V3, mtp=False)(*batch()))


def test_arguments_are_checked(tmp_path: Path) -> None:
    save_checkpoint(drawn(LLAMA), tmp_path)
    for wrong in ({"loss_chunk": 0}, {"mtp_weight": -1.0}, {"kernels": "fast"}, {"device": "no_such"}):
        ((field, _),) = wrong.items()
        with pytest.raises(ArgumentError, match=f"^{field} = "):
            load_training_model(tmp_path, **wrong)  # type: ignore[arg-type]
    assert next(load_training_model(tmp_path, device="meta").parameters()).is_meta
