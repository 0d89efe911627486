"""A model designed for a budget and measured, and the tokens that the budget pays for."""

from math import ceil

from counting.analysis import Analysis, analyze
from counting.cost.beyond_compute import MixtureOnModel, mixture_on_model
from counting.cost.budget import BudgetPlan
from counting.cost.conventions import training_flops_per_token
from counting.cost.design.architecture import Architecture
from counting.cost.design.model import DEFAULT_DESIGN_FAMILY, design_model
from counting.cost.scaling_laws import Interval, ScalingLaw, affordable_tokens, loss_interval, predicted_loss
from counting.setup import Setup
from torch_models.errors import UserError
from torch_models.fields.config import spec_from_fields


class Design(Architecture, frozen=True, kw_only=True):
    """A measured architecture, the tokens that the budget pays for, and the loss that the law predicts."""

    mtp_parameters: int  # of multi-token prediction, beside the main model; 0 without
    tokens: int
    tokens_per_parameter: float  # of the sized parameters, as the loss
    training_flops_per_token: int
    training_flops: int  # for all `tokens`; at most those of the budget
    scaling_law: str
    predicted_loss: float  # nats per token
    predicted_loss_interval: Interval | None  # 95 %; None for a law without draws of a bootstrap
    granularity: float | None  # width of a dense layer / width of an expert; None without experts, as the next
    sparsity: float | None  # routed experts / those of a token
    mixture: MixtureOnModel | None  # the law of mixtures, of a design with experts; its losses are of other data


def design_for_budget(plan: BudgetPlan, name: str, family: str = DEFAULT_DESIGN_FAMILY) -> Design:
    """A model of `family` of about `plan.optimal_parameters`; parameters and FLOPs are measured on its modules.

    Of a mixture of experts, that is the number of active parameters. Multi-token prediction is trained if the family
    has it. The sequence length is the config's `max_position_embeddings`. `name` becomes the name of the model. Raises
    UserError for an unknown family, a size outside the range of its design rules, and for a budget that does not pay
    for one token.
    """
    architecture = design_model(plan.optimal_parameters, family)
    positions = architecture.config["max_position_embeddings"]
    assert isinstance(positions, int)
    analysis = analyze(spec_from_fields(architecture.config, name), Setup(sequence_length=positions), step=False)
    return resolve_tokens(architecture, analysis, training_flops=plan.training_flops, law=plan.law)


def resolve_tokens(architecture: Architecture, analysis: Analysis, *, training_flops: float, law: ScalingLaw) -> Design:
    """The design with D = floor(C / training FLOPs per token), and the loss that the law predicts at (N, D).

    `analysis` is that of `architecture`. FLOPs per token are rounded up, so that the total never exceeds
    `training_flops`. Raises UserError if the budget does not pay for one token.
    """
    flops_per_token = ceil(training_flops_per_token(analysis))
    tokens = affordable_tokens(training_flops, flops_per_token)
    if not tokens:
        raise UserError(
            f"{training_flops:.3g} training FLOPs do not pay for one token of this model ({flops_per_token:.3g})"
        )
    counted = analysis.parameters
    parameters = counted.active if architecture.sized_by == "active" else counted.total
    return Design(
        family=architecture.family,
        config=architecture.config,
        parameters=counted.total,
        active_parameters=counted.active,
        mtp_parameters=counted.mtp,
        sized_by=architecture.sized_by,
        target_parameters=architecture.target_parameters,
        relative_error=parameters / architecture.target_parameters - 1,
        rules=architecture.rules,
        tokens=tokens,
        tokens_per_parameter=tokens / parameters,
        training_flops_per_token=flops_per_token,
        training_flops=tokens * flops_per_token,
        scaling_law=law.name,
        predicted_loss=predicted_loss(law, parameters, tokens),
        predicted_loss_interval=loss_interval(law, parameters, tokens),
        granularity=_ratio(architecture, "intermediate_size", "moe_intermediate_size"),
        sparsity=_ratio(architecture, "n_routed_experts", "num_experts_per_tok"),
        mixture=mixture_on_model(analysis, tokens) if architecture.sized_by == "active" else None,
    )


def _ratio(architecture: Architecture, part: str, other: str) -> float | None:
    """Two sizes of the config of a mixture of experts, divided; None of a dense model."""
    if architecture.sized_by != "active":
        return None
    above, below = architecture.config[part], architecture.config[other]
    assert isinstance(above, int) and isinstance(below, int)
    return above / below
