"""The compute-optimal N for a number of tokens, and the least compute for a loss.

Both follow from the condition of the optimum, alpha A N^-alpha = beta B D^-beta (see `optimum`).
"""

from counting.cost.scaling_laws.law import ScalingLaw
from counting.cost.scaling_laws.optimum import FLOPS_PER_PARAMETER_AND_TOKEN


def optimal_parameters(law: ScalingLaw, tokens: float) -> float:
    """The N for which D = `tokens` is compute-optimal: N = (alpha A D^beta / beta B)^(1 / alpha)."""
    alpha, beta = law.parameter_exponent.value, law.token_exponent.value
    balance = alpha * law.parameter_coefficient.value / (beta * law.token_coefficient.value)
    parameters: float = (balance * tokens**beta) ** (1 / alpha)
    return parameters


def training_flops_for_loss(law: ScalingLaw, loss: float) -> float:
    """The fewest training FLOPs, 6 N D, with which the law reaches `loss`, which is above its irreducible loss.

    At the optimum B D^-beta = (alpha / beta) A N^-alpha, so A N^-alpha (1 + alpha / beta) = L - E, and likewise for D.
    """
    alpha, beta = law.parameter_exponent.value, law.token_exponent.value
    reducible = loss - law.irreducible_loss.value
    parameters = (law.parameter_coefficient.value * (1 + alpha / beta) / reducible) ** (1 / alpha)
    tokens = (law.token_coefficient.value * (1 + beta / alpha) / reducible) ** (1 / beta)
    flops: float = FLOPS_PER_PARAMETER_AND_TOKEN * parameters * tokens
    return flops
