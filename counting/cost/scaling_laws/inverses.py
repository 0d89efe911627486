"""The compute-optimal N for a number of tokens, and the least compute for a reducible loss, L - E.

Both follow from the condition of the optimum, alpha A N^-alpha = beta B D^-beta (see `optimum`).
"""

from collections.abc import Sequence
from math import exp, log, log1p

from counting.cost.scaling_laws.law import ScalingLaw, constants_of, loss_of_constants
from counting.cost.scaling_laws.optimum import FLOPS_PER_PARAMETER_AND_TOKEN

LARGEST_EXPONENTIAL = 700.0  # e^700 is still a float


def log_optimal_parameters(constants: Sequence[float], log_tokens: float) -> float:
    """ln of the N for which D is compute-optimal: N = (alpha A D^beta / beta B)^(1 / alpha); constants E to beta."""
    _, of_parameters, of_tokens, alpha, beta = constants
    balance = log(alpha) + log(of_parameters) - log(beta) - log(of_tokens)
    return (balance + beta * log_tokens) / alpha


def training_flops_for_loss(law: ScalingLaw, reducible: float) -> float:
    """The fewest training FLOPs, 6 N D, with which the loss is `reducible` above the irreducible one.

    At the optimum B D^-beta = (alpha / beta) A N^-alpha, so A N^-alpha (1 + alpha / beta) = L - E, and likewise for D.
    """
    _, of_parameters, of_tokens, alpha, beta = constants_of(law)
    log_parameters = (log(of_parameters) + log1p(alpha / beta) - log(reducible)) / alpha
    log_tokens = (log(of_tokens) + log1p(beta / alpha) - log(reducible)) / beta
    return FLOPS_PER_PARAMETER_AND_TOKEN * bounded_exp(log_parameters + log_tokens)


def reducible_loss(law: ScalingLaw, parameters: float, tokens: float) -> float:
    """A / N^alpha + B / D^beta, which is not lost in the digits of E however small it is."""
    return loss_of_constants((0, *constants_of(law)[1:]), parameters, tokens)


def bounded_exp(exponent: float) -> float:
    """e^x, or the largest power of e that a float holds."""
    return exp(min(exponent, LARGEST_EXPONENTIAL))
