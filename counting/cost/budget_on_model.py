"""The number of tokens that a budget can train a given model on, compared with the optimum of the scaling law.

The tokens follow from the model's own training FLOPs, not from 6 N D. The law depends on the model only through N. A
mixture of experts gets two results, one for the total N and one for the active N: the laws here were fitted to dense
models, so neither N has the same meaning as in the law.
"""

from math import ceil, floor
from typing import Literal

import msgspec

from counting.analysis import Analysis
from counting.cost.budget import BudgetPlan
from counting.cost.conventions import has_indexer, training_flops_per_token, trains_mtp
from counting.cost.scaling_laws import Interval, extrapolates, loss_interval, optimal_tokens, predicted_loss
from counting.cost.scaling_laws.intervals import optimal_tokens_interval
from counting.records.tidy import Tidy
from torch_models.errors import UserError


class LawOnModel(msgspec.Struct, frozen=True, kw_only=True):
    """The scaling law applied to the model, with N = `parameters`."""

    taken_as: Literal["total", "active"]
    parameters: int
    tokens_per_parameter: float
    optimal_tokens: float  # the D for which this N is compute-optimal
    optimal_tokens_interval: Interval | None  # 95 %; None for a law without draws of a bootstrap, as below
    tokens_over_optimal: float
    predicted_loss: float  # nats per token, on the tokens that the budget pays for
    predicted_loss_interval: Interval | None
    extrapolated: bool


class BudgetOnModel(Tidy, frozen=True, kw_only=True):
    """The whole budget spent on one model."""

    model: str
    sequence_length: int
    mtp_trained: bool
    has_indexer: bool  # which runs forward only, and is not trained
    training_flops_per_token: int  # rounded up
    tokens: int
    scaling_law: str
    mixture_of_experts: bool
    readings: tuple[LawOnModel, ...]  # one for a dense model; total and active N for a mixture of experts


def spend_on(analysis: Analysis, plan: BudgetPlan) -> BudgetOnModel:
    """The tokens that the budget of `plan` trains the model on. Raises UserError if it does not pay for one token."""
    per_token = training_flops_per_token(analysis)
    tokens = floor(plan.training_flops / per_token)
    if not tokens:
        raise UserError(
            f"{analysis.name}: {plan.training_flops:,} training FLOPs do not pay for one token "
            f"({float(per_token):.3g} FLOPs): give a larger budget or utilisation"
        )
    law = plan.law
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
                optimal_tokens_interval=optimal_tokens_interval(law, size),
                tokens_over_optimal=tokens / optimum,
                predicted_loss=predicted_loss(law, size, tokens),
                predicted_loss_interval=loss_interval(law, size, tokens),
                extrapolated=extrapolates(law, size, tokens),
            )
        )
    return BudgetOnModel(
        model=analysis.name,
        sequence_length=analysis.sequence_length,
        mtp_trained=trains_mtp(analysis),
        has_indexer=has_indexer(analysis),
        training_flops_per_token=ceil(per_token),
        tokens=tokens,
        scaling_law=law.name,
        mixture_of_experts=len(readings) > 1,
        readings=tuple(readings),
    )
