"""Measured parameters: against transformers, by owner, complete."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from counting.formulas.parameters import parameters
from counting.measurements.parameters import (
    count_parameters,
    inactive_parameters,
    linear_weights,
    router_correction_bias,
)
from tests.checkpoints import in_native_names
from tests.shrunken import DEEPSEEK_V3, LLAMA, MINIMAX_M2
from torch_models import build, build_mtp, read_spec
from torch_models.fields.bundled import bundled_data
from torch_models.fields.config import spec_from_fields
from torch_models.fields.file import read_config

CONFIGS = sorted(file.name for file in bundled_data().iterdir() if file.name.endswith("_config.json"))


@pytest.mark.parametrize("config", CONFIGS)
def test_full_size_shapes_and_names_are_transformers(config: str) -> None:
    fields = read_config(config)[1]
    fields.pop("quantization_config", None)  # transformers would build the stored model, not the trained one
    if fields["model_type"] == "kimi_k2":  # transformers reads it as DeepSeek-V3
        fields["model_type"] = "deepseek_v3"
    with torch.device("meta"):
        reference = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**fields))
    shapes = {name: tensor.shape for name, tensor in build(config, device="meta").state_dict().items()}
    expected = in_native_names(reference.state_dict(), read_spec(config).model_type)
    assert shapes == {name: tensor.shape for name, tensor in expected.items()}


@pytest.mark.parametrize("config", CONFIGS)
def test_components_sum_to_numel_of_the_whole_model(config: str) -> None:
    model = build(config, device="meta")
    counts = count_parameters(model)
    assert sum(counts.by_component().values()) == sum(parameter.numel() for parameter in model.parameters())
    assert counts == parameters(read_spec(config))


@pytest.mark.parametrize(
    "fields",
    [
        LLAMA | {"attention_bias": True, "mlp_bias": True, "head_dim": 16, "num_key_value_heads": 2},
        LLAMA | {"tie_word_embeddings": True},
        DEEPSEEK_V3 | {"attention_bias": True},
        DEEPSEEK_V3 | {"q_lora_rank": None, "n_shared_experts": None},
        DEEPSEEK_V3 | {"moe_layer_freq": 2, "num_hidden_layers": 7},
    ],
    ids=["llama-biases", "llama-tied", "deepseek-biases", "deepseek-direct-queries", "deepseek-every-other-layer"],
)
def test_every_option_counts(fields: dict[str, Any]) -> None:
    spec = spec_from_fields(fields, "shrunken")
    assert count_parameters(build(spec, device="meta")) == parameters(spec)


def test_a_parameter_without_a_component_is_an_error() -> None:
    with pytest.raises(AssertionError, match="parameter weight belongs to no component"):
        count_parameters(nn.Linear(2, 2, device="meta"))


def test_correction_bias_and_inactive_experts() -> None:
    model = build(spec_from_fields(DEEPSEEK_V3, "shrunken"), device="meta")
    assert router_correction_bias(model) == 3 * 16  # three layers of 16 experts
    assert inactive_parameters(model) == 3 * (16 - 3) * 3 * 64 * 24  # 3 of 16 chosen; three 64 x 24 matrices each
    assert router_correction_bias(build(spec_from_fields(MINIMAX_M2, "shrunken"), device="meta")) == 3 * 8


def test_a_module_that_is_not_quantised_has_no_linear_weights() -> None:
    """The projection of multi-token prediction says so itself; by hand: one mixture's matrices, attention's five."""
    (layer,) = build_mtp(spec_from_fields(DEEPSEEK_V3, "shrunken"), device="meta")
    attention = 64 * 40 + 40 * 4 * 24 + 64 * (32 + 8) + 32 * 4 * (16 + 20) + 4 * 20 * 64
    assert linear_weights(layer) == attention + (16 + 2) * 3 * 64 * 24
    assert linear_weights(layer.eh_proj) == 0


# Published totals, recomputed with transformers' numel; those marked "checkpoint" also equal the published files'.
TOTALS = {
    "llama_2_13b": 13_015_864_320,
    "llama_2_70b": 68_976_648_192,
    "llama_3_70b": 70_553_706_496,  # checkpoint
    "llama_3_1_405b": 405_853_388_800,
    "llama_3_2_1b": 1_235_814_400,  # checkpoint
    "llama_3_2_3b": 3_212_749_824,  # checkpoint
    "mistral_7b": 7_241_732_096,  # checkpoint
    "mixtral_8x7b": 46_702_792_704,
    "qwen2_5_7b": 7_615_616_512,  # checkpoint
    "qwen3_8b": 8_190_735_360,  # checkpoint
    "qwen3_30b_a3b": 30_532_122_624,  # checkpoint
    "deepseek_v2": 235_741_434_880,
    "qwen1_5_moe_a2_7b": 14_315_784_192,
    "minimax_m2": 228_689_748_992,
}


@pytest.mark.parametrize(("config", "total"), TOTALS.items())
def test_published_totals(config: str, total: int) -> None:
    assert count_parameters(build(config, device="meta")).total == total


@pytest.mark.parametrize(
    ("config", "active", "without_embedding"),
    [
        ("mixtral_8x7b", "12.880", None),
        ("qwen3_30b_a3b", "3.353", "3.04"),
        ("deepseek_v2", "21.376", None),
        ("qwen1_5_moe_a2_7b", "2.689", None),
        ("minimax_m2", "11.031", None),
    ],
)
def test_published_active_parameters(config: str, active: str, without_embedding: str | None) -> None:
    model = build(config, device="meta")
    counts = count_parameters(model)
    count = counts.total - inactive_parameters(model)
    assert f"{count / 1e9:.3f}" == active
    if without_embedding:
        assert f"{(count - counts.word_embedding) / 1e9:.2f}" == without_embedding
