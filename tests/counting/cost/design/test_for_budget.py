"""The tokens that a budget pays for on a designed model."""

import msgspec
import pytest

from counting.analysis import Analysis, analyze
from counting.cost.budget import DEFAULT_GPUS, plan_budget
from counting.cost.design import design_for_budget, design_model, resolve_tokens
from counting.cost.scaling_laws import find_law, predicted_loss
from counting.setup import Setup
from torch_models.errors import UserError

BUDGETS = [10 ** (3 + step) for step in range(7)]  # $1,000 to $1 billion


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("gpus", [list(DEFAULT_GPUS), ["B200"]], ids=",".join)
def test_the_budget_is_met_and_not_exceeded(gpus: list[str], budget: float) -> None:
    plan = plan_budget(budget, gpus=gpus)
    architecture = design_model(plan.optimal_parameters)
    positions = architecture.config["max_position_embeddings"]
    assert isinstance(positions, int)
    analysis = analyze(architecture.config, Setup(sequence_length=positions), step=False)
    design = design_for_budget(plan, "designed")
    assert design.parameters == architecture.parameters == analysis.parameters.total
    assert design.training_flops_per_token * positions == 3 * analysis.forward_flops
    assert design.training_flops == design.tokens * design.training_flops_per_token
    assert design.training_flops <= plan.training_flops < design.training_flops + design.training_flops_per_token
    assert design.predicted_loss == predicted_loss(find_law("course"), design.parameters, design.tokens)
    assert design.predicted_loss >= plan.predicted_loss  # attention and the head cost more than 6 N per token
    assert design.tokens_per_parameter == design.tokens / design.parameters


@pytest.fixture(scope="module")
def small() -> Analysis:
    """Of 2 x 10^9 parameters and 101 FLOPs for 10 tokens, whatever is measured."""
    analysis = analyze("llama_7b", Setup(sequence_length=10), step=False)
    parameters = msgspec.structs.replace(analysis.parameters, total=2 * 10**9)
    return msgspec.structs.replace(analysis, parameters=parameters, forward_flops=101)


def test_tokens_by_hand_and_measured_parameters_counted(small: Analysis) -> None:
    # 3 x 101 / 10 tokens: 31 FLOPs per token, rounded up; 1000 / 31 = 32.3
    design = resolve_tokens(design_model(10**9), small, training_flops=1000.0, law=find_law("course"))
    assert (design.training_flops_per_token, design.tokens, design.training_flops) == (31, 32, 992)
    assert (design.parameters, design.relative_error, design.scaling_law) == (2 * 10**9, 1.0, "course")


def test_a_budget_below_one_token_is_refused(small: Analysis) -> None:
    with pytest.raises(UserError, match=r"10 training FLOPs do not pay for one token of this model \(31\)"):
        resolve_tokens(design_model(10**9), small, training_flops=10.0, law=find_law("course"))


def test_granularity_and_sparsity_are_those_of_the_experts(small: Analysis) -> None:
    """A dense layer is as wide as 8 experts, and 6 of 96 experts are a token's: 16."""
    design = design_for_budget(plan_budget(50_000), "mixed", "deepseek_v3")
    config = design.config
    assert (config["n_routed_experts"], config["num_experts_per_tok"]) == (96, 6)
    assert (design.granularity, design.sparsity) == (8.0, 16.0)
    dense = resolve_tokens(design_model(10**9), small, training_flops=1000.0, law=find_law("course"))
    assert (dense.granularity, dense.sparsity) == (None, None)
