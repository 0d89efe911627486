"""What it costs to train as one law says while another one holds, and how far the laws are apart.

Legend: E, A, B, alpha, beta are of the law that holds, N* its optimum for C = 6 N D, and r = N / N* for the N that was
trained, with D = C / 6N. At N*, alpha A N*^-alpha = beta B D*^-beta = K (`compute_optimum`), hence

    L(N, D) - L(N*, D*) = K ((r^-alpha - 1) / alpha + (r^beta - 1) / beta)        nats per token

The reducible loss of the optimum, K (1 / alpha + 1 / beta), falls as C^(-alpha beta / (alpha + beta)). So the same loss
takes, at its own optimum, this share of C (the rest is wasted):

    C' / C = ((beta r^-alpha + alpha r^beta) / (alpha + beta))^(-(alpha + beta) / (alpha beta))
"""

from collections.abc import Sequence
from math import exp, expm1, log

import msgspec

from counting.cost.scaling_laws.law import ScalingLaw, constants_of
from counting.cost.scaling_laws.optimum import log_optimum
from counting.cost.scaling_laws.published import LAWS


class WrongChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The cost of training at the optimum of `followed` if `holds` is the law that holds."""

    holds: str
    followed: str
    excess_loss: float  # nats per token above the optimum of `holds`
    wasted_compute: float  # the share of the FLOPs that could be saved at the same loss


class LawOptimum(msgspec.Struct, frozen=True, kw_only=True):
    """The optimum of one law, not rounded."""

    law: str
    parameters: float
    tokens: float
    tokens_per_parameter: float


class LawsApart(msgspec.Struct, frozen=True, kw_only=True):
    """How far the laws with a loss are apart at one budget."""

    optima: tuple[LawOptimum, ...]
    fewest_tokens_per_parameter: LawOptimum
    most_tokens_per_parameter: LawOptimum
    wrong_choices: tuple[WrongChoice, ...]  # each ordered pair
    costliest: WrongChoice  # with the largest excess loss, of those that follow the budget's law


def excess_loss(law: ScalingLaw, training_flops: float, parameters: float) -> float:
    """L(N, C / 6N) - L(N*, C / 6N*) under `law`, in nats per token, for N = `parameters`; never below 0."""
    _, of_parameters, _, alpha, beta = constants_of(law)
    log_best, _ = log_optimum(constants_of(law), training_flops)
    log_ratio = log(parameters) - log_best
    slope = alpha * of_parameters * exp(-alpha * log_best)
    return slope * (expm1(-alpha * log_ratio) / alpha + expm1(beta * log_ratio) / beta)


def wasted_compute(law: ScalingLaw, training_flops: float, parameters: float) -> float:
    """The share of C that reaches the loss of N = `parameters` on C / 6N tokens is left over at the law's optimum."""
    _, _, _, alpha, beta = constants_of(law)
    log_best, _ = log_optimum(constants_of(law), training_flops)
    log_ratio = log(parameters) - log_best
    above = (beta * exp(-alpha * log_ratio) + alpha * exp(beta * log_ratio)) / (alpha + beta)
    return -expm1(-(alpha + beta) / (alpha * beta) * log(max(above, 1.0)))


def laws_apart(law: ScalingLaw, training_flops: float, others: Sequence[ScalingLaw] = LAWS) -> LawsApart:
    """`law`, which the budget follows, and `others`, each at its optimum for `training_flops`, and each against each.

    Of laws with one name the first is taken.
    """
    laws = list({one.name: one for one in reversed((law, *others))}.values())[::-1]
    optima = tuple(_optimum(one, training_flops) for one in laws)
    choices = tuple(
        wrong_choice(holds, followed.law, training_flops, followed.parameters)
        for followed in optima
        for holds in laws
        if holds.name != followed.law
    )
    by_ratio = sorted(optima, key=lambda optimum: optimum.tokens_per_parameter)
    return LawsApart(
        optima=optima,
        fewest_tokens_per_parameter=by_ratio[0],
        most_tokens_per_parameter=by_ratio[-1],
        wrong_choices=choices,
        costliest=max(
            (choice for choice in choices if choice.followed == law.name), key=lambda choice: choice.excess_loss
        ),
    )


def wrong_choice(holds: ScalingLaw, followed: str, training_flops: float, parameters: float) -> WrongChoice:
    """The cost of N = `parameters`, as `followed` says, if the law `holds` does."""
    return WrongChoice(
        holds=holds.name,
        followed=followed,
        excess_loss=excess_loss(holds, training_flops, parameters),
        wasted_compute=wasted_compute(holds, training_flops, parameters),
    )


def _optimum(law: ScalingLaw, training_flops: float) -> LawOptimum:
    log_parameters, log_tokens = log_optimum(constants_of(law), training_flops)
    return LawOptimum(
        law=law.name,
        parameters=exp(log_parameters),
        tokens=exp(log_tokens),
        tokens_per_parameter=exp(log_tokens - log_parameters),
    )
