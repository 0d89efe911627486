"""Families by name, and what every family's design and its measurement agree on."""

import msgspec
import pytest

from counting.analysis import analyze
from counting.cost.budget import plan_budget
from counting.cost.design import DESIGN_FAMILIES, Design, design_for_budget, design_model, find_design_family
from counting.cost.scaling_laws import find_law, predicted_loss
from counting.setup import Setup
from torch_models.errors import ArgumentError
from torch_models.fields.config import spec_from_fields

BUDGET = plan_budget(50_000)  # 5.7 x 10^9 parameters


@pytest.fixture(scope="module", params=DESIGN_FAMILIES)
def design(request: pytest.FixtureRequest) -> Design:
    return design_for_budget(BUDGET, "designed", request.param)


def test_the_families() -> None:
    assert DESIGN_FAMILIES == ("deepseek_v3", "llama", "qwen3")
    for name in DESIGN_FAMILIES:
        family = find_design_family(f" {name.upper()}")
        assert family.name == name
        assert family.smallest < family.largest


def test_llama_is_the_default() -> None:
    assert design_model(10**9) == design_model(10**9, "llama")


@pytest.mark.parametrize("name", ["gpt2", "", "__init__", None, 3])
def test_an_unknown_family_is_refused_with_those_known(name: object) -> None:
    with pytest.raises(ArgumentError) as caught:
        design_model(10**9, name)  # type: ignore[arg-type]
    assert (caught.value.field, caught.value.value) == ("design_family", name)
    assert caught.value.rule == "is not known: choose from deepseek_v3, llama, qwen3"


@pytest.mark.parametrize("name", DESIGN_FAMILIES)
def test_the_ends_of_the_range_have_designs(name: str) -> None:
    family = find_design_family(name)
    for target in (family.smallest, family.largest):
        architecture = design_model(target, name)
        assert abs(architecture.relative_error) <= 0.005
        assert architecture.family == architecture.config["model_type"] == name
        assert spec_from_fields(architecture.config, "x").model_type == name


def test_the_target_is_met_on_the_modules(design: Design) -> None:
    positions = design.config["max_position_embeddings"]
    assert isinstance(positions, int)
    analysis = analyze(design.config, Setup(sequence_length=positions), step=False)
    assert design.parameters == analysis.parameters.total
    assert design.active_parameters == analysis.parameters.active
    assert design.mtp_parameters == analysis.parameters.mtp
    assert design.sized_parameters == (
        analysis.parameters.active if design.family == "deepseek_v3" else design.parameters
    )
    assert design.relative_error == design.sized_parameters / BUDGET.optimal_parameters - 1
    assert abs(design.relative_error) <= 0.005
    # Multi-token prediction is trained where the family has it.
    forward = analysis.forward_flops + analysis.mtp_forward_flops
    assert (analysis.mtp_forward_flops > 0) == (design.family == "deepseek_v3")
    assert design.training_flops_per_token == -(-3 * forward // positions)
    assert design.training_flops == design.tokens * design.training_flops_per_token
    assert design.training_flops <= BUDGET.training_flops < design.training_flops + design.training_flops_per_token
    assert design.tokens_per_parameter == design.tokens / design.sized_parameters
    assert design.predicted_loss == predicted_loss(find_law("course"), design.sized_parameters, design.tokens)


def test_the_formula_says_the_same(design: Design) -> None:
    architecture = design_model(BUDGET.optimal_parameters, design.family)
    assert (architecture.parameters, architecture.active_parameters) == (design.parameters, design.active_parameters)
    assert (architecture.config, architecture.rules) == (design.config, design.rules)
    assert msgspec.json.decode(architecture.config_json()) == architecture.config
