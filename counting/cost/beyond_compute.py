"""A budget beyond plain compute: tokens that repeat, a model that serves, a mixture of experts.

Each asks for the best N and D of the budget's FLOPs, C = 6 N D, and for what the whole budget reaches on each given
model, by the model's own FLOPs. The formulas are in `scaling_laws`.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import floor

import msgspec

from counting.analysis import Analysis, ParameterTotals
from counting.cost.budget import BudgetPlan, check_whole
from counting.cost.budget_on_model import BudgetOnModel
from counting.cost.conventions import training_flops_per_token
from counting.cost.scaling_laws import optimal_tokens, predicted_loss
from counting.cost.scaling_laws.inference import InferenceAware, inference_aware
from counting.cost.scaling_laws.mixtures import (
    LUDZIEJEWSKI_2025,
    MixtureOptimum,
    law_at,
    mixture_optimum,
    orders_beyond_mixtures,
)
from counting.cost.scaling_laws.repeated_tokens import (
    MUENNIGHOFF_2023,
    DataLimited,
    data_limited_optimum,
    loss_with_repeats,
)
from counting.records.tidy import Tidy


class RepeatsOnModel(msgspec.Struct, frozen=True, kw_only=True):
    """The budget spent on one model whose training repeats its unique tokens."""

    model: str
    taken_as: str  # total or active, of a mixture of experts
    tokens: int
    epochs: float
    predicted_loss: float
    plain_loss: float  # by the law itself, in which every token is new and every parameter counts in full


class DataLimitedBudget(Tidy, frozen=True, kw_only=True):
    """A budget with a limited number of unique tokens."""

    scaling_law: str
    worth: str  # whose formula says how fast repeated tokens lose their value
    source: str
    optimum: DataLimited
    models: tuple[RepeatsOnModel, ...]


class ServingOnModel(msgspec.Struct, frozen=True, kw_only=True):
    """The budget spent on training one model and on serving it."""

    model: str
    inference_flops: int  # a forward pass for each token, as measured
    share: float  # of the budget; above 1 if the budget does not pay for serving
    tokens: int  # training tokens that the rest pays for; 0 if there is none


class InferenceAwareBudget(Tidy, frozen=True, kw_only=True):
    """A budget that pays for serving too."""

    scaling_law: str
    source: str
    optimum: InferenceAware
    models: tuple[ServingOnModel, ...]


class MixtureOnModel(msgspec.Struct, frozen=True, kw_only=True):
    """The budget spent on one mixture of experts, under the law of mixtures."""

    model: str
    scaling_law: str
    expansion_rate: float  # E: feed-forward parameters for each that a token uses
    parameters: int  # active
    total_parameters: int
    tokens: int
    optimal_tokens: float  # the D for which this N is compute-optimal at this E
    tokens_over_optimal: float
    predicted_loss: float  # nats per token
    dense_loss: float  # of a dense model with as many parameters as are active here, on the same tokens
    orders_beyond: float  # by how many orders of magnitude N, D or E is beyond the runs of the fit


class MixtureBudget(Tidy, frozen=True, kw_only=True):
    """A budget for a mixture of experts: the best one, if an expansion rate is given, and those that are given."""

    scaling_law: str
    source: str
    fitted_parameters: tuple[float, float]  # active
    fitted_tokens: tuple[float, float]
    fitted_experts: tuple[float, float]
    optimum: MixtureOptimum | None
    models: tuple[MixtureOnModel, ...]


class BeyondCompute(Tidy, frozen=True, kw_only=True):
    """What was asked of a budget beyond plain compute; None where it was not asked."""

    data_limited: DataLimitedBudget | None
    inference_aware: InferenceAwareBudget | None
    mixture: MixtureBudget | None


def beyond_compute(
    plan: BudgetPlan,
    analyses: Sequence[Analysis] = (),
    spent: Sequence[BudgetOnModel] = (),
    *,
    unique_tokens: int | None = None,
    inference_tokens: int | None = None,
    expansion_rate: float | None = None,
) -> BeyondCompute:
    """All of them, each for itself: see `with_unique_tokens`, `with_inference_tokens`, `with_mixtures`."""
    return BeyondCompute(
        data_limited=None if unique_tokens is None else with_unique_tokens(plan, unique_tokens, spent),
        inference_aware=None if inference_tokens is None else with_inference_tokens(plan, inference_tokens, analyses),
        mixture=with_mixtures(plan, expansion_rate, analyses, spent),
    )


def with_unique_tokens(plan: BudgetPlan, unique_tokens: int, spent: Sequence[BudgetOnModel] = ()) -> DataLimitedBudget:
    """The budget of `plan` if tokens beyond `unique_tokens` are repetitions; ArgumentError if they are below 1."""
    check_whole("unique_tokens", unique_tokens)
    law = plan.law
    return DataLimitedBudget(
        scaling_law=law.name,
        worth=MUENNIGHOFF_2023.name,
        source=MUENNIGHOFF_2023.source,
        optimum=data_limited_optimum(law, plan.training_flops, unique_tokens),
        models=tuple(
            RepeatsOnModel(
                model=model.model,
                taken_as=reading.taken_as,
                tokens=model.tokens,
                epochs=model.tokens / unique_tokens,
                predicted_loss=loss_with_repeats(law, reading.parameters, model.tokens, unique_tokens),
                plain_loss=reading.predicted_loss,
            )
            for model in spent
            for reading in model.readings
        ),
    )


def with_inference_tokens(
    plan: BudgetPlan, inference_tokens: int, analyses: Sequence[Analysis] = ()
) -> InferenceAwareBudget:
    """The budget of `plan` if the model serves `inference_tokens`. Raises ArgumentError if they are below 1."""
    check_whole("inference_tokens", inference_tokens)
    law = plan.law
    return InferenceAwareBudget(
        scaling_law=law.name,
        source="Sardana et al. 2024 (arXiv 2401.00448)",
        optimum=inference_aware(law, plan.training_flops, inference_tokens),
        models=tuple(_serving(analysis, plan, inference_tokens) for analysis in analyses),
    )


def with_mixtures(
    plan: BudgetPlan,
    expansion_rate: float | None = None,
    analyses: Sequence[Analysis] = (),
    spent: Sequence[BudgetOnModel] = (),
) -> MixtureBudget | None:
    """The best mixture of `expansion_rate`, and the given ones; None if there is neither.

    Each model is in `analyses`, and in `spent` with the tokens that the budget pays for.
    Raises ArgumentError for an expansion rate outside 1 to 1000.
    """
    law = LUDZIEJEWSKI_2025
    optimum = None if expansion_rate is None else mixture_optimum(plan.training_flops, expansion_rate, law)
    models = tuple(
        mixture_on_model(analysis, model.tokens)
        for analysis, model in zip(analyses, spent, strict=True)
        if analysis.parameters.active < analysis.parameters.total
    )
    if optimum is None and not models:
        return None
    return MixtureBudget(
        scaling_law=law.name,
        source=law.source,
        fitted_parameters=law.fitted_parameters,
        fitted_tokens=law.fitted_tokens,
        fitted_experts=law.fitted_experts,
        optimum=optimum,
        models=models,
    )


def expansion_rate_of(parameters: ParameterTotals) -> float:
    """E of a model: its feed-forward parameters, dense layers and shared experts included, for each that a token uses.

    A token does not use total - active of them.
    """
    held = sum(parameters.by_component[name] for name in ("mlp", "routed_experts", "shared_experts"))
    used = held - (parameters.total - parameters.active)
    return held / used


def mixture_on_model(analysis: Analysis, tokens: int) -> MixtureOnModel:
    """What the law of mixtures says of an analysed mixture of experts that is trained on `tokens`."""
    law, rate = LUDZIEJEWSKI_2025, expansion_rate_of(analysis.parameters)
    active = analysis.parameters.active
    of_mixture = law_at(law, rate)
    optimum = optimal_tokens(of_mixture, active)
    return MixtureOnModel(
        model=analysis.name,
        scaling_law=law.name,
        expansion_rate=rate,
        parameters=active,
        total_parameters=analysis.parameters.total,
        tokens=tokens,
        optimal_tokens=optimum,
        tokens_over_optimal=tokens / optimum,
        predicted_loss=predicted_loss(of_mixture, active, tokens),
        dense_loss=predicted_loss(law_at(law, 1), active, tokens),
        orders_beyond=orders_beyond_mixtures(law, active, tokens, rate),
    )


def _serving(analysis: Analysis, plan: BudgetPlan, inference_tokens: int) -> ServingOnModel:
    inference = floor(Fraction(analysis.forward_flops, analysis.setup.tokens) * inference_tokens)
    left = max(0, plan.training_flops - inference)
    return ServingOnModel(
        model=analysis.name,
        inference_flops=inference,
        share=inference / plan.training_flops,
        tokens=floor(left / training_flops_per_token(analysis)),
    )
