"""From a budget to a model designed for it, measured, and the tokens that the budget then pays for."""

from counting.analysis import analyze
from counting.cost.budget import BudgetPlan
from counting.cost.design import Design, design_model, resolve_tokens
from torch_models.fields.config import spec_from_fields


def design_for_budget(plan: BudgetPlan, name: str) -> Design:
    """A Llama-style model of about `plan.optimal_parameters`; parameters and FLOPs are those of its modules."""
    architecture = design_model(plan.optimal_parameters)
    analysis = analyze(spec_from_fields(architecture.config, name))
    return resolve_tokens(
        architecture,
        training_flops=plan.training_flops,
        scaling_law=plan.scaling_law,
        measured_parameters=analysis.parameters.total,
        measured_forward_flops=analysis.forward_flops,
    )
