"""Model states, inputs and buffers in closed form, by hand."""

import pytest

from counting.formulas.states import (
    buffer_bytes,
    input_bytes,
    layer_moments,
    layer_states,
    outside_moments,
    outside_states,
)
from counting.recipes import OPTIMIZERS, ModelStates
from counting.setup import Setup, resolve
from tests.shrunken import DEEPSEEK_V3, GLM4_MOE, GPT_OSS
from torch_models.fields.config import read_spec, spec_from_fields
from torch_models.spec import ModelSpec


def setup(spec: ModelSpec, **changes: object) -> Setup:
    return resolve(Setup(**{"sequence_length": 24, **changes}), spec)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("precision", "weights", "gradients", "masters", "moments"),
    [("mixed", 2, 2, 4, 8), ("mixed-fp32-gradients", 2, 4, 4, 8), ("bf16", 2, 2, 0, 4), ("fp32", 4, 4, 0, 8)],
)
def test_states_of_llama_7b(precision: str, weights: int, gradients: int, masters: int, moments: int) -> None:
    """202,383,360 parameters in a layer; 2 x 32000 x 4096 + 4096 outside."""
    spec = read_spec("llama_7b")
    per_parameter = ModelStates(weights=weights, gradients=gradients, masters=masters, moments=moments)
    run = setup(spec, precision=precision)
    assert layer_states(spec.layers[0], run) == per_parameter * 202_383_360
    assert outside_states(spec, run) == per_parameter * (2 * 32000 * 4096 + 4096)


def test_moments_of_each_optimiser() -> None:
    """A layer of Llama-7B has two norms of 4,096, four matrices of 4096 x 4096 and three of 4096 x 11008."""
    spec = read_spec("llama_7b")
    matrices, norms = 4 * 4096 * 4096 + 3 * 4096 * 11008, 2 * 4096
    assert matrices + norms == 202_383_360
    factored = 4 * (4096 + 4096) + 3 * (4096 + 11008) + norms
    scales = 2 * 4 * (matrices + norms) // 256
    moments = {
        optimizer.name: layer_moments(spec.layers[0], setup(spec, optimizer=optimizer.name)) for optimizer in OPTIMIZERS
    }
    assert moments == {
        "adamw": 8 * 202_383_360,
        "adamw-foreach": 8 * 202_383_360,
        "adamw-8bit": 2 * 202_383_360 + scales,
        "adafactor": 4 * factored,
        "sgd": 0,
        "sgd-momentum": 4 * 202_383_360,
        "muon": 4 * matrices + 8 * norms,
    }


def test_muon_leaves_the_vocabulary_to_adamw() -> None:
    """Embedding and head of 32000 x 4096, and the final norm: two moments in fp32 for each number."""
    spec = read_spec("llama_7b")
    assert outside_moments(spec, setup(spec, optimizer="muon")) == 8 * (2 * 32000 * 4096 + 4096)
    bf16 = setup(spec, optimizer="muon", precision="bf16")
    assert outside_moments(spec, bf16) == 4 * (2 * 32000 * 4096 + 4096)


def test_adafactor_factors_the_matrices_of_each_expert() -> None:
    """gpt-oss: 6 experts of 64 x 80 (gate and up) and 40 x 64, and their biases, which torch sees as two matrices."""
    spec = spec_from_fields(GPT_OSS, "s")
    experts = 6
    of_experts = experts * (64 + 80) + (experts + 80) + experts * (40 + 64) + (experts + 64)
    router, norms = (experts + 64) + experts, 2 * 64
    attention = 8 + (128 + 64) + 128 + 2 * ((32 + 64) + 32) + (64 + 128) + 64
    run = setup(spec, optimizer="adafactor", precision="fp32")
    assert layer_moments(spec.layers[0], run) == 4 * (of_experts + router + norms + attention)


@pytest.mark.parametrize("recipe", [{"precision": "fp8"}, {"optimizer": "adamw-8bit"}])
def test_what_torch_cannot_run_has_no_formula_to_be_held_against(recipe: dict[str, str]) -> None:
    spec = read_spec("deepseek_v3")
    run = setup(spec, **recipe)
    assert layer_states(spec.layers[0], run) is None
    assert outside_states(spec, run) is None


def test_multi_token_prediction_has_states_and_buffers_where_it_is_trained() -> None:
    spec = spec_from_fields(DEEPSEEK_V3 | {"num_nextn_predict_layers": 2}, "s")
    trained, untrained = setup(spec), setup(spec, mtp=False)
    with_mtp, without = outside_states(spec, trained), outside_states(spec, untrained)
    assert with_mtp is not None
    assert without is not None
    assert without.masters == 4 * (2 * 96 * 64 + 64)
    layer = layer_states(spec.mtp_layers[0], trained)
    assert layer is not None
    assert with_mtp.masters - without.masters == 2 * (layer.masters + 4 * (2 * 64 * 64 + 3 * 64))
    # 16 experts in each of 3 layers, and in each prediction's.
    assert buffer_bytes(spec, untrained) == 4 * 16 * 3
    assert buffer_bytes(spec, trained) == 4 * 16 * 5


def test_inputs() -> None:
    """Ids and labels of 8 bytes; cos and sin of 4 pairs of channels for 24 positions (GLM rotates 4 of 16: 2 pairs)."""
    deepseek, glm = spec_from_fields(DEEPSEEK_V3, "s"), spec_from_fields(GLM4_MOE, "s")
    assert input_bytes(deepseek, setup(deepseek)) == 24 * (2 * 8 + 2 * 4 * 2)
    assert input_bytes(deepseek, setup(deepseek, precision="fp32")) == 24 * (2 * 8 + 2 * 4 * 4)
    assert input_bytes(glm, setup(glm)) == 24 * (2 * 8 + 2 * 2 * 2)
