"""Scaling laws: the loss that a model of N parameters reaches on D tokens, and the best N and D for a compute budget.

All laws here have the parametric form of Hoffmann et al. 2022 (arXiv 2203.15556, eq. 10):

    L(N, D) = E + A / N^alpha + B / D^beta        nats per token

Legend: N parameters, D tokens, C training FLOPs, C = 6 N D if no exact count is known (Kaplan et al. 2020,
arXiv 2001.08361, §2.1: 2 N forward and 4 N backward per token, attention scores not counted).
"""

from math import exp

import msgspec

from torch_models.errors import ArgumentError, UserError

FLOPS_PER_PARAMETER_AND_TOKEN = 6


class ScalingLaw(msgspec.Struct, frozen=True, kw_only=True):
    """The constants of one fit, their source, and the range of the runs that they were fitted to."""

    name: str
    irreducible_loss: float  # E
    parameter_coefficient: float  # A
    token_coefficient: float  # B
    parameter_exponent: float  # alpha
    token_exponent: float  # beta
    citation: str
    fitted_parameters: tuple[float, float] = (70e6, 16e9)  # of the runs of Hoffmann et al. 2022, abstract and §1:
    fitted_tokens: tuple[float, float] = (5e9, 500e9)  # over 400 models of 70M to 16B on 5 to 500 billion tokens


class Optimum(msgspec.Struct, frozen=True, kw_only=True):
    """The model size and token count with the lowest predicted loss for a compute budget."""

    parameters: int
    tokens: int


LAWS = (
    ScalingLaw(
        name="course",
        irreducible_loss=1.69,
        parameter_coefficient=406.4,
        token_coefficient=410.7,
        parameter_exponent=0.34,
        token_exponent=0.29,
        citation="this project's default: Hoffmann et al. 2022, eq. 10, with a token exponent of 0.29 (printed: 0.28)",
    ),
    ScalingLaw(
        name="hoffmann-2022",
        irreducible_loss=1.69,
        parameter_coefficient=406.4,
        token_coefficient=410.7,
        parameter_exponent=0.34,
        token_exponent=0.28,
        citation="Hoffmann et al. 2022 (arXiv 2203.15556), eq. 10, as printed",
    ),
    ScalingLaw(
        name="hoffmann-2022-unrounded",
        irreducible_loss=exp(0.5267228),
        parameter_coefficient=exp(6.0073404),
        token_coefficient=exp(6.0179186),
        parameter_exponent=0.33917084,
        token_exponent=0.2849083,
        citation="Hoffmann et al. 2022, constants of the paper's source, quoted by Besiroglu et al. 2024",
    ),
    ScalingLaw(
        name="besiroglu-2024",
        irreducible_loss=1.8172,
        parameter_coefficient=482.01,
        token_coefficient=2085.43,
        parameter_exponent=0.3478,
        token_exponent=0.3658,
        citation="Besiroglu et al. 2024 (arXiv 2404.10102), refitted to a subset of the runs of Hoffmann et al.",
    ),
)

DEFAULT_LAW = LAWS[0]


def find_law(name: str) -> ScalingLaw:
    """The law called `name`, in upper or lower case; raises an ArgumentError that lists the known ones."""
    for law in LAWS:
        if isinstance(name, str) and law.name == name.strip().lower():
            return law
    known = ", ".join(law.name for law in LAWS)
    raise ArgumentError("scaling_law", name, f"is not known: choose from {known}")


def predicted_loss(law: ScalingLaw, parameters: float, tokens: float) -> float:
    """The loss in nats per token of a model of `parameters` trained on `tokens`."""
    loss: float = (
        law.irreducible_loss
        + law.parameter_coefficient / parameters**law.parameter_exponent
        + law.token_coefficient / tokens**law.token_exponent
    )
    return loss


def extrapolates(law: ScalingLaw, parameters: float, tokens: float) -> bool:
    """Whether `parameters` or `tokens` is outside the range of the runs that the law was fitted to."""
    smallest, largest = law.fitted_parameters
    fewest, most = law.fitted_tokens
    return not (smallest <= parameters <= largest and fewest <= tokens <= most)


def compute_optimum(law: ScalingLaw, training_flops: float) -> Optimum:
    """The N and D with the lowest loss at 6 N D = `training_flops`, in closed form (Hoffmann et al. 2022, eq. 4).

    With D = C / 6N, dL/dN = 0 gives alpha A N^-alpha = beta B D^-beta, hence

        N = G (C / 6)^(beta / (alpha + beta)),   G = (alpha A / beta B)^(1 / (alpha + beta))

    N is rounded to a whole parameter, and D down to a whole token, so that 6 N D never exceeds the budget.
    Raises UserError if N or D would be 0.
    """
    alpha, beta = law.parameter_exponent, law.token_exponent
    balance = (alpha * law.parameter_coefficient / (beta * law.token_coefficient)) ** (1 / (alpha + beta))
    parameters = round(balance * (training_flops / FLOPS_PER_PARAMETER_AND_TOKEN) ** (beta / (alpha + beta)))
    tokens = affordable_tokens(training_flops, FLOPS_PER_PARAMETER_AND_TOKEN * max(parameters, 1))
    if not (parameters and tokens):
        raise UserError(
            f"{training_flops:.3g} training FLOPs are too few for any model: give a larger budget or utilisation"
        )
    return Optimum(parameters=parameters, tokens=tokens)


def optimal_tokens(law: ScalingLaw, parameters: int) -> float:
    """The D for which N = `parameters` is compute-optimal.

    From alpha A N^-alpha = beta B D^-beta (see `compute_optimum`): D = (beta B N^alpha / alpha A)^(1 / beta).
    """
    alpha, beta = law.parameter_exponent, law.token_exponent
    balance = beta * law.token_coefficient / (alpha * law.parameter_coefficient)
    tokens: float = (balance * parameters**alpha) ** (1 / beta)
    return tokens


def affordable_tokens(training_flops: float, training_flops_per_token: int) -> int:
    """The number of tokens that `training_flops` pay for, rounded down."""
    return int(training_flops) // training_flops_per_token
