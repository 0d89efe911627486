"""Measured parameters: against transformers, by owner, complete."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from counting.analytic import parameters
from counting.parameters import inactive_parameters, parameter_counts, router_correction_bias
from tests.shrunken import DEEPSEEK_V3, LLAMA
from torch_models import build, read_spec
from torch_models.config import read_config, spec_from_fields

CONFIGS = ["llama_7b_config.json", "llama_3_8b_config.json", "deepseek_v3_config.json"]


@pytest.mark.parametrize("config", CONFIGS)
def test_full_size_shapes_and_names_are_transformers(config: str) -> None:
    fields = read_config(config)[1]
    fields.pop("quantization_config", None)  # transformers would build the stored model, not the trained one
    with torch.device("meta"):
        reference = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**fields))
    shapes = {name: tensor.shape for name, tensor in build(config, device="meta").state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in reference.state_dict().items()}


@pytest.mark.parametrize("config", CONFIGS)
def test_components_sum_to_numel_of_the_whole_model(config: str) -> None:
    model = build(config, device="meta")
    counts = parameter_counts(model)
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
    assert parameter_counts(build(spec, device="meta")) == parameters(spec)


def test_a_parameter_without_a_component_is_an_error() -> None:
    with pytest.raises(AssertionError, match="parameter weight belongs to no component"):
        parameter_counts(nn.Linear(2, 2, device="meta"))


def test_correction_bias_and_inactive_experts() -> None:
    model = build(spec_from_fields(DEEPSEEK_V3, "shrunken"), device="meta")
    assert router_correction_bias(model) == 3 * 16  # three layers of 16 experts
    assert inactive_parameters(model) == 3 * (16 - 3) * 3 * 64 * 24  # 3 of 16 chosen; three 64 x 24 matrices each
