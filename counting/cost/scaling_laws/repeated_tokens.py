"""Repeated tokens are worth less: the loss, and the best N and D of a budget, where only so many tokens are unique.

Muennighoff et al. 2023 (arXiv 2305.16264), §3.1 and appendix A. Of U unique tokens the k-th repetition teaches less
than the one before, by the same factor each time, so D tokens are worth as much as D' unique ones; parameters beyond
those that U can use lose their value alike:

    L = E + A / N'^alpha + B / D'^beta
    D' = U_D + U_D R_D* (1 - exp(-R_D / R_D*)),    U_D = min(U, D),        R_D = D / U_D - 1
    N' = U_N + U_N R_N* (1 - exp(-R_N / R_N*)),    U_N = min(N_opt, N),    R_N = N / U_N - 1

N_opt is the N for which D = U_D is compute-optimal under the law; the paper writes it (U_D G)^(beta / alpha) G. R_D*
and R_N* are numbers of repetitions: about that often a repetition is worth its compute. They were fitted beside one
law, of C4, whose constants were held fixed. With another law they are an assumption: that it differs in what a unique
token is worth, not in how fast that fades.
"""

from collections.abc import Sequence
from math import exp, expm1, log

import msgspec

from counting.cost.scaling_laws.intervals import OptimumIntervals, intervals_of
from counting.cost.scaling_laws.inverses import (
    bounded_exp,
    log_optimal_parameters,
    reducible_loss,
    training_flops_for_loss,
)
from counting.cost.scaling_laws.law import ScalingLaw, constants_of, extrapolates, loss_of_constants, predicted_loss
from counting.cost.scaling_laws.optimum import (
    FLOPS_PER_PARAMETER_AND_TOKEN,
    affordable_tokens,
    compute_optimum,
    log_optimum,
)


class RepeatDecay(msgspec.Struct, frozen=True, kw_only=True):
    """How fast repeated tokens and excess parameters lose their value, and the range of the runs it was fitted to."""

    name: str
    repeated_tokens: float  # R_D*
    excess_parameters: float  # R_N*
    source: str
    most_parameters: float
    most_tokens: float  # of one run, repetitions included
    most_epochs: float


MUENNIGHOFF_2023 = RepeatDecay(
    name="muennighoff-2023",
    repeated_tokens=15.387756,
    excess_parameters=5.309743,
    source="Muennighoff et al. 2023 (arXiv 2305.16264), appendix A, fitted to 182 runs on C4",
    most_parameters=9e9,  # appendix A: 7 million to 9 billion parameters, 1 to 500 epochs
    most_tokens=900e9,  # abstract
    most_epochs=500,
)


class DataLimited(msgspec.Struct, frozen=True, kw_only=True):
    """The best N and D of a compute budget where tokens beyond `unique_tokens` are repetitions."""

    unique_tokens: int
    parameters: int
    tokens: int  # repetitions included
    tokens_per_parameter: float
    epochs: float  # `tokens` over `unique_tokens`; at most 1 if nothing has to be repeated
    predicted_loss: float  # nats per token
    intervals: OptimumIntervals | None  # 95 %; None for a law without draws of a bootstrap
    effective_parameters: float  # N', worth as much if nothing were repeated
    effective_tokens: float  # D'
    unlimited_loss: float  # the best loss of the budget if all tokens were unique
    unlimited_flops: float  # the training FLOPs that reach `predicted_loss` if all tokens were unique
    unlimited_share: float  # those over the budget's
    lowest_loss: float  # that any compute reaches with these unique tokens
    plain_epochs: float  # the N and D that are best with unlimited data, on these unique tokens:
    plain_loss: float
    extrapolated: bool  # beyond the runs of the law or of the decay


def data_limited_optimum(
    law: ScalingLaw, training_flops: float, unique_tokens: int, decay: RepeatDecay = MUENNIGHOFF_2023
) -> DataLimited:
    """The N and D of lowest loss at 6 N D = `training_flops`, N to a whole parameter, D down to a whole token.

    Raises UserError if the budget is too small for any model.
    """
    plain = compute_optimum(law, training_flops)
    parameters = plain.parameters
    if plain.tokens > unique_tokens:
        best = round(exp(log_data_limited_optimum(constants_of(law), training_flops, unique_tokens, decay)[0]))
        parameters = min(max(best, 1), affordable_tokens(training_flops, FLOPS_PER_PARAMETER_AND_TOKEN))
    tokens = affordable_tokens(training_flops, FLOPS_PER_PARAMETER_AND_TOKEN * parameters)
    constants = constants_of(law)
    effective_parameters, effective_tokens = effective_sizes(constants, parameters, tokens, unique_tokens, decay)
    loss = predicted_loss(law, effective_parameters, effective_tokens)
    unlimited_flops = training_flops_for_loss(law, reducible_loss(law, effective_parameters, effective_tokens))
    return DataLimited(
        unique_tokens=unique_tokens,
        parameters=parameters,
        tokens=tokens,
        tokens_per_parameter=tokens / parameters,
        epochs=tokens / unique_tokens,
        predicted_loss=loss,
        intervals=_intervals(law, training_flops, parameters, tokens, unique_tokens, decay),
        effective_parameters=effective_parameters,
        effective_tokens=effective_tokens,
        unlimited_loss=predicted_loss(law, plain.parameters, plain.tokens),
        unlimited_flops=unlimited_flops,
        unlimited_share=unlimited_flops / training_flops,
        lowest_loss=lowest_loss(law, unique_tokens, decay),
        plain_epochs=plain.tokens / unique_tokens,
        plain_loss=loss_with_repeats(law, plain.parameters, plain.tokens, unique_tokens, decay),
        extrapolated=extrapolates(law, parameters, min(tokens, unique_tokens))
        or parameters > decay.most_parameters
        or tokens > decay.most_tokens
        or tokens / unique_tokens > decay.most_epochs,
    )


def loss_with_repeats(
    law: ScalingLaw, parameters: float, tokens: float, unique_tokens: float, decay: RepeatDecay = MUENNIGHOFF_2023
) -> float:
    """The loss in nats per token of N parameters on D tokens, of which at most `unique_tokens` are unique."""
    return predicted_loss(law, *effective_sizes(constants_of(law), parameters, tokens, unique_tokens, decay))


def lowest_loss(law: ScalingLaw, unique_tokens: float, decay: RepeatDecay = MUENNIGHOFF_2023) -> float:
    """The loss for ever more parameters and epochs: N' ends at U_N (1 + R_N*) and D' at U (1 + R_D*)."""
    usable = _usable(constants_of(law), unique_tokens)
    return predicted_loss(law, usable * (1 + decay.excess_parameters), unique_tokens * (1 + decay.repeated_tokens))


def effective_sizes(
    constants: Sequence[float],
    parameters: float,
    tokens: float,
    unique_tokens: float,
    decay: RepeatDecay = MUENNIGHOFF_2023,
) -> tuple[float, float]:
    """N' and D', the parameters and unique tokens that are worth as much, for E, A, B, alpha, beta."""
    unique = min(unique_tokens, tokens)
    return (
        _worth(parameters, min(_usable(constants, unique), parameters), decay.excess_parameters),
        _worth(tokens, unique, decay.repeated_tokens),
    )


def _usable(constants: Sequence[float], unique_tokens: float) -> float:
    """The parameters that the unique tokens can use; at least one, whatever the constants are."""
    return bounded_exp(max(0.0, log_optimal_parameters(constants, log(unique_tokens))))


def log_data_limited_optimum(
    constants: Sequence[float], training_flops: float, unique_tokens: float, decay: RepeatDecay = MUENNIGHOFF_2023
) -> tuple[float, float]:
    """(ln N, ln D) of lowest loss on 6 N D = C, for E, A, B, alpha, beta, not rounded.

    It is the plain optimum if that has no more than the unique tokens. Else, with x = ln N and D = C / 6N,

        dL/dx = beta B D'^-beta e_D - alpha A N'^-alpha e_N,   e_D = exp(-R_D / R_D*) D / D',   e_N likewise of N

    where e is the growth of the worth in proportion to that of the amount. Along x the first term grows and the second
    shrinks, so there is one minimum. At N = N_opt of the unique tokens the derivative is negative, since D' > U; at
    D = U it is positive, since N' > N_opt. Between them bisection finds it. The terms are compared as logarithms, for
    they can be as small as exp(-10^9).
    """
    plain = log_optimum(constants, training_flops)
    log_unique = log(unique_tokens)
    if plain[1] <= log_unique:
        return plain
    _, of_parameters, of_tokens, alpha, beta = constants
    log_usable = log_optimal_parameters(constants, log_unique)
    log_product = log(training_flops / FLOPS_PER_PARAMETER_AND_TOKEN)
    token_term = log(beta) + log(of_tokens) - beta * log_unique
    parameter_term = log(alpha) + log(of_parameters) - alpha * log_usable

    def parameters_gain_more(log_parameters: float) -> bool:
        of_parameter = _log_gain(log_parameters - log_usable, alpha, decay.excess_parameters)
        of_token = _log_gain(log_product - log_parameters - log_unique, beta, decay.repeated_tokens)
        return parameter_term + of_parameter > token_term + of_token

    low, high = log_usable, log_product - log_unique
    while high - low > 1e-13 * (1 + abs(high)):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if parameters_gain_more(middle):
            low = middle
        else:
            high = middle
    best = (low + high) / 2
    return best, log_product - best


def _log_gain(log_amount: float, exponent: float, decay: float) -> float:
    """ln (w^-exponent e) for an amount of so many unique ones, which is worth w of them."""
    amount = bounded_exp(log_amount)
    return log_amount - (amount - 1) / decay - (1 + exponent) * log(_worth(amount, 1, decay))


def _worth(amount: float, unique: float, decay: float) -> float:
    """`unique` units and the repetitions up to `amount`, in units that are worth as much as unique ones."""
    return unique - unique * decay * expm1(-(amount / unique - 1) / decay)


def _intervals(
    law: ScalingLaw, training_flops: float, parameters: int, tokens: int, unique_tokens: int, decay: RepeatDecay
) -> OptimumIntervals | None:
    """The intervals of the optimum of each draw, and of the loss that each predicts at the law's own."""
    if not law.bootstrap:
        return None
    return intervals_of(
        [log_data_limited_optimum(draw, training_flops, unique_tokens, decay) for draw in law.bootstrap],
        [
            loss_of_constants(draw, *effective_sizes(draw, parameters, tokens, unique_tokens, decay))
            for draw in law.bootstrap
        ],
    )
