"""The best N and D for a compute budget under a parametric law.

Legend: N parameters, D tokens, C training FLOPs, C = 6 N D if no exact count is known (Kaplan et al. 2020,
arXiv 2001.08361, §2.1: 2 N forward and 4 N backward per token, attention scores not counted).
"""

from collections.abc import Sequence
from math import inf, log

import msgspec

from counting.cost.scaling_laws.law import ScalingLaw, constants_of
from torch_models.errors import UserError

FLOPS_PER_PARAMETER_AND_TOKEN = 6


class Optimum(msgspec.Struct, frozen=True, kw_only=True):
    """The model size and token count with the lowest predicted loss for a compute budget."""

    parameters: int
    tokens: int


def compute_optimum(law: ScalingLaw, training_flops: float) -> Optimum:
    """The N and D with the lowest loss at 6 N D = `training_flops`, in closed form (Hoffmann et al. 2022, eq. 4).

    With D = C / 6N, dL/dN = 0 gives alpha A N^-alpha = beta B D^-beta, hence

        N = G (C / 6)^(beta / (alpha + beta)),   G = (alpha A / beta B)^(1 / (alpha + beta))

    N is rounded to a whole parameter, and D down to a whole token, so that 6 N D never exceeds the budget.
    Raises UserError if N or D would be 0, or N beyond any number.
    """
    _, of_parameters, of_tokens, alpha, beta = constants_of(law)
    try:
        balance = (alpha * of_parameters / (beta * of_tokens)) ** (1 / (alpha + beta))
        parameters = round(balance * (training_flops / FLOPS_PER_PARAMETER_AND_TOKEN) ** (beta / (alpha + beta)))
    except OverflowError:
        raise _no_optimum(law) from None
    tokens = affordable_tokens(training_flops, FLOPS_PER_PARAMETER_AND_TOKEN * max(parameters, 1))
    if not (parameters and tokens):
        raise UserError(
            f"{training_flops:.3g} training FLOPs are too few for any model: give a larger budget or utilisation"
        )
    return Optimum(parameters=parameters, tokens=tokens)


def log_optimum(constants: Sequence[float], training_flops: float) -> tuple[float, float]:
    """(ln N, ln D) of `compute_optimum` for E, A, B, alpha, beta as given, not rounded."""
    _, of_parameters, of_tokens, alpha, beta = constants
    log_product = log(training_flops / FLOPS_PER_PARAMETER_AND_TOKEN)
    balance = log(alpha) + log(of_parameters) - log(beta) - log(of_tokens)
    log_parameters = (balance + beta * log_product) / (alpha + beta)
    return log_parameters, log_product - log_parameters


def optimal_tokens(law: ScalingLaw, parameters: int) -> float:
    """The D for which N = `parameters` is compute-optimal.

    From alpha A N^-alpha = beta B D^-beta (see `compute_optimum`): D = (beta B N^alpha / alpha A)^(1 / beta).
    Raises UserError if D would be beyond any number.
    """
    _, of_parameters, of_tokens, alpha, beta = constants_of(law)
    try:
        tokens: float = (beta * of_tokens / (alpha * of_parameters) * parameters**alpha) ** (1 / beta)
    except OverflowError:
        tokens = inf
    if tokens == inf:
        raise _no_optimum(law)
    return tokens


def affordable_tokens(training_flops: float, training_flops_per_token: int) -> int:
    """The number of tokens that `training_flops` pay for, rounded down."""
    return int(training_flops) // training_flops_per_token


def _no_optimum(law: ScalingLaw) -> UserError:
    return UserError(f"the scaling law {law.name} has no optimum that is a number: its constants are too far apart")
