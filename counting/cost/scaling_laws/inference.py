"""Training and serving together: the N and D with the lowest loss for a compute budget, or the cheapest for a loss.

Sardana et al. 2024 (arXiv 2401.00448), §2, eq. 1-2: a model of N parameters that is trained on D tokens and then reads
and writes I tokens in its life costs

    C = 6 N D + 2 N I        FLOPs

(2 N a token: a forward pass). The paper fixes a loss l and asks for min C subject to L(N, D) = l. A budget fixes C and
asks for min L. Both have the same condition, dL/dN : dL/dD = dC/dN : dC/dD, for a law of Hoffmann's form

    alpha A N^-alpha = beta B D^-beta (1 + I / 3D)

which gives N for a D. As D grows, this N and C grow and L falls, so each question has one answer, which bisection over
ln D finds. Without serving, I = 0, it is the compute-optimal N and D. Here a FLOP of serving costs as much as one of
training; the paper also lets their prices and utilisations differ.
"""

from collections.abc import Callable, Sequence
from math import ceil, exp, log, log1p

import msgspec

from counting.cost.scaling_laws.intervals import OptimumIntervals, intervals_of
from counting.cost.scaling_laws.inverses import LARGEST_EXPONENTIAL, bounded_exp, reducible_loss
from counting.cost.scaling_laws.law import ScalingLaw, constants_of, extrapolates, loss_of_constants, predicted_loss
from counting.cost.scaling_laws.optimum import FLOPS_PER_PARAMETER_AND_TOKEN, affordable_tokens, compute_optimum
from torch_models.errors import UserError

SERVING_FLOPS_PER_PARAMETER_AND_TOKEN = 2


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model, its training, and what both cost with the tokens that it serves."""

    parameters: int
    tokens: int
    tokens_per_parameter: float
    predicted_loss: float  # nats per token
    training_flops: int  # 6 N D
    inference_flops: int  # 2 N I
    total_flops: int
    inference_share: float  # of the total
    extrapolated: bool


class InferenceAware(msgspec.Struct, frozen=True, kw_only=True):
    """What a compute budget buys if the model also serves `inference_tokens`."""

    inference_tokens: int
    best: ServedModel  # the lowest loss for which training and serving together cost the budget
    intervals: OptimumIntervals | None  # of `best`, 95 %; None for a law without draws of a bootstrap
    plain: ServedModel  # the compute-optimal model: training alone costs the budget, and serving comes on top
    cheapest: ServedModel  # of the loss of `plain`, with the fewest FLOPs of training and serving together
    added: float  # FLOPs of serving `plain`, over those of its training
    saved: float  # share of the FLOPs of `plain` that `cheapest` saves


def inference_aware(law: ScalingLaw, training_flops: float, inference_tokens: int) -> InferenceAware:
    """The model that is best if the budget pays for serving too, beside the compute-optimal one and its cheapest equal.

    Raises UserError if the budget is too small for any model.
    """
    optimum = compute_optimum(law, training_flops)
    plain = _served(law, optimum.parameters, optimum.tokens, inference_tokens)
    constants = constants_of(law)
    whole = round(exp(best_for_compute(constants, training_flops, inference_tokens)[0]))
    left = int(training_flops) - SERVING_FLOPS_PER_PARAMETER_AND_TOKEN * whole * inference_tokens
    tokens = affordable_tokens(left, FLOPS_PER_PARAMETER_AND_TOKEN * max(whole, 1))
    if whole < 1 or tokens < 1:
        raise UserError(
            f"{training_flops:.3g} FLOPs are too few to train any model and serve {inference_tokens:,} tokens: give a "
            "larger budget or fewer tokens"
        )
    reducible = reducible_loss(law, plain.parameters, plain.tokens)
    equal_parameters, equal_tokens = (
        ceil(exp(log_size)) for log_size in cheapest_for_loss(constants, reducible, inference_tokens)
    )
    cheapest = _served(law, equal_parameters, equal_tokens, inference_tokens)
    return InferenceAware(
        inference_tokens=inference_tokens,
        best=_served(law, whole, tokens, inference_tokens),
        intervals=_intervals(law, training_flops, inference_tokens, whole, tokens),
        plain=plain,
        cheapest=cheapest,
        added=plain.inference_flops / plain.training_flops,
        saved=max(0.0, 1 - cheapest.total_flops / plain.total_flops),
    )


def best_for_compute(constants: Sequence[float], flops: float, inference_tokens: float) -> tuple[float, float]:
    """(ln N, ln D) of lowest loss at 6 N D + 2 N I = `flops`, for E, A, B, alpha, beta, not rounded."""
    log_flops = log(flops)

    def costs_less(log_parameters: float, log_tokens: float) -> bool:
        return log_parameters + log(lifetime_flops(1, bounded_exp(log_tokens), inference_tokens)) < log_flops

    return _root(constants, inference_tokens, costs_less)


def cheapest_for_loss(constants: Sequence[float], reducible: float, inference_tokens: float) -> tuple[float, float]:
    """(ln N, ln D) of fewest FLOPs of training and serving whose loss is E + `reducible`, for E, A, B, alpha, beta."""
    _, of_parameters, of_tokens, alpha, beta = constants

    def loses_more(log_parameters: float, log_tokens: float) -> bool:
        of_parameter = of_parameters * bounded_exp(-alpha * log_parameters)
        return of_parameter + of_tokens * bounded_exp(-beta * log_tokens) > reducible

    return _root(constants, inference_tokens, loses_more)


def lifetime_flops(parameters: float, tokens: float, inference_tokens: float) -> float:
    """6 N D + 2 N I."""
    training = FLOPS_PER_PARAMETER_AND_TOKEN * parameters * tokens
    return training + SERVING_FLOPS_PER_PARAMETER_AND_TOKEN * parameters * inference_tokens


def _root(
    constants: Sequence[float], inference_tokens: float, too_small: Callable[[float, float], bool]
) -> tuple[float, float]:
    """(ln N, ln D) that satisfy the condition, at the D where `too_small` of both turns from true to false."""
    _, of_parameters, of_tokens, alpha, beta = constants
    balance = log(alpha) + log(of_parameters) - log(beta) - log(of_tokens)
    served = inference_tokens * SERVING_FLOPS_PER_PARAMETER_AND_TOKEN / FLOPS_PER_PARAMETER_AND_TOKEN

    def sizes(log_tokens: float) -> tuple[float, float]:
        return (balance + beta * log_tokens - log1p(served * bounded_exp(-log_tokens))) / alpha, log_tokens

    low, high = -LARGEST_EXPONENTIAL, LARGEST_EXPONENTIAL
    while high - low > 1e-12:
        middle = (low + high) / 2
        if too_small(*sizes(middle)):
            low = middle
        else:
            high = middle
    return sizes((low + high) / 2)


def _served(law: ScalingLaw, parameters: int, tokens: int, inference_tokens: int) -> ServedModel:
    training = FLOPS_PER_PARAMETER_AND_TOKEN * parameters * tokens
    inference = SERVING_FLOPS_PER_PARAMETER_AND_TOKEN * parameters * inference_tokens
    return ServedModel(
        parameters=parameters,
        tokens=tokens,
        tokens_per_parameter=tokens / parameters,
        predicted_loss=predicted_loss(law, parameters, tokens),
        training_flops=training,
        inference_flops=inference,
        total_flops=training + inference,
        inference_share=inference / (training + inference),
        extrapolated=extrapolates(law, parameters, tokens),
    )


def _intervals(
    law: ScalingLaw, training_flops: float, inference_tokens: int, parameters: int, tokens: int
) -> OptimumIntervals | None:
    """The intervals of the best model of each draw, and of the loss that each predicts at the law's own."""
    if not law.bootstrap:
        return None
    return intervals_of(
        [best_for_compute(draw, training_flops, inference_tokens) for draw in law.bootstrap],
        [loss_of_constants(draw, parameters, tokens) for draw in law.bootstrap],
    )
