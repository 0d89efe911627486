"""What a budget trains a given model on, and how that compares with what the scaling law would have.

The tokens follow from the model's own training FLOPs, not from 6 N D; the law knows models by N alone. Of a mixture of
experts it is asked twice, with the total N and with the active one: the laws here were fitted to dense models, and
neither is what they mean by N.
"""

from math import ceil, floor
from typing import Literal

import msgspec

from counting.analysis import Analysis
from counting.cost.budget import BudgetPlan
from counting.cost.conventions import training_flops_per_token, trains_mtp
from counting.cost.scaling_laws import extrapolates, find_law, optimal_tokens, predicted_loss
from torch_models.errors import UserError


class LawOnModel(msgspec.Struct, frozen=True, kw_only=True):
    """The scaling law's word on the model, taken as one of `parameters`."""

    taken_as: Literal["total", "active"]
    parameters: int
    tokens_per_parameter: float
    optimal_tokens: float  # for which a model of this size is the best one
    tokens_over_optimal: float
    predicted_loss: float  # nats per token, on the tokens that the budget pays for
    extrapolated: bool


class BudgetOnModel(msgspec.Struct, frozen=True, kw_only=True):
    """The whole budget spent on one model."""

    model: str
    sequence_length: int
    mtp_trained: bool
    training_flops_per_token: int  # rounded up
    tokens: int
    scaling_law: str
    mixture_of_experts: bool
    readings: tuple[LawOnModel, ...]  # one of a dense model; of a mixture of experts total and active


def spend_on(analysis: Analysis, plan: BudgetPlan) -> BudgetOnModel:
    """The tokens that `plan` trains the model of `analysis` on; a UserError where they are not one."""
    per_token = training_flops_per_token(analysis)
    tokens = floor(plan.training_flops / per_token)
    if not tokens:
        raise UserError(
            f"{analysis.name}: {plan.training_flops:,} training FLOPs do not pay for one token "
            f"({float(per_token):.3g} FLOPs): give a larger budget or utilisation"
        )
    law = find_law(plan.scaling_law)
    parameters = analysis.parameters
    sizes: dict[Literal["total", "active"], int] = {"total": parameters.total, "active": parameters.active}
    if parameters.total == parameters.active:
        del sizes["active"]
    readings = []
    for taken_as, size in sizes.items():
        optimum = optimal_tokens(law, size)
        readings.append(
            LawOnModel(
                taken_as=taken_as,
                parameters=size,
                tokens_per_parameter=tokens / size,
                optimal_tokens=optimum,
                tokens_over_optimal=tokens / optimum,
                predicted_loss=predicted_loss(law, size, tokens),
                extrapolated=extrapolates(law, size, tokens),
            )
        )
    return BudgetOnModel(
        model=analysis.name,
        sequence_length=analysis.sequence_length,
        mtp_trained=trains_mtp(analysis),
        training_flops_per_token=ceil(per_token),
        tokens=tokens,
        scaling_law=law.name,
        mixture_of_experts=len(readings) > 1,
        readings=tuple(readings),
    )
