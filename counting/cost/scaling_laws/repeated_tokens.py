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

from math import exp, expm1, log

import msgspec

from counting.cost.scaling_laws.inverses import optimal_parameters, training_flops_for_loss
from counting.cost.scaling_laws.law import ScalingLaw, extrapolates, predicted_loss
from counting.cost.scaling_laws.optimum import FLOPS_PER_PARAMETER_AND_TOKEN, affordable_tokens, compute_optimum


class RepeatDecay(msgspec.Struct, frozen=True, kw_only=True):
    """How fast repeated tokens and excess parameters lose their value, and the range of the runs it was fitted to."""

    repeated_tokens: float  # R_D*
    excess_parameters: float  # R_N*
    source: str
    most_parameters: float
    most_tokens: float  # of one run, repetitions included
    most_epochs: float


MUENNIGHOFF_2023 = RepeatDecay(
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
        best = round(_best_parameters(law, training_flops, unique_tokens, decay))
        parameters = min(max(best, 1), affordable_tokens(training_flops, FLOPS_PER_PARAMETER_AND_TOKEN))
    tokens = affordable_tokens(training_flops, FLOPS_PER_PARAMETER_AND_TOKEN * parameters)
    effective_parameters, effective_tokens = effective_sizes(law, parameters, tokens, unique_tokens, decay)
    loss = predicted_loss(law, effective_parameters, effective_tokens)
    unlimited_flops = training_flops_for_loss(law, loss)
    return DataLimited(
        unique_tokens=unique_tokens,
        parameters=parameters,
        tokens=tokens,
        tokens_per_parameter=tokens / parameters,
        epochs=tokens / unique_tokens,
        predicted_loss=loss,
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
    """The loss in nats per token of N parameters on D tokens, of which at most `unique_tokens` are unique (eq. 17)."""
    return predicted_loss(law, *effective_sizes(law, parameters, tokens, unique_tokens, decay))


def lowest_loss(law: ScalingLaw, unique_tokens: float, decay: RepeatDecay = MUENNIGHOFF_2023) -> float:
    """The loss for ever more parameters and epochs: N' ends at U_N (1 + R_N*) and D' at U (1 + R_D*)."""
    parameters = optimal_parameters(law, unique_tokens) * (1 + decay.excess_parameters)
    return predicted_loss(law, parameters, unique_tokens * (1 + decay.repeated_tokens))


def effective_sizes(
    law: ScalingLaw, parameters: float, tokens: float, unique_tokens: float, decay: RepeatDecay = MUENNIGHOFF_2023
) -> tuple[float, float]:
    """N' and D': the parameters and unique tokens that are worth as much."""
    unique = min(unique_tokens, tokens)
    return (
        _worth(parameters, min(optimal_parameters(law, unique), parameters), decay.excess_parameters),
        _worth(tokens, unique, decay.repeated_tokens),
    )


def _worth(amount: float, unique: float, decay: float) -> float:
    """`unique` units and the repetitions up to `amount`, in units that are worth as much as unique ones."""
    return unique - unique * decay * expm1(-(amount / unique - 1) / decay)


def _best_parameters(law: ScalingLaw, training_flops: float, unique_tokens: float, decay: RepeatDecay) -> float:
    """The N of lowest loss on 6 N D = C, if the plain optimum has more than the unique tokens.

    With x = ln N and D = C / 6N, dL/dx = beta B D'^-beta e_D - alpha A N'^-alpha e_N, where e = exp(-R / R*) D / D' or
    exp(-R / R*) N / N' is the growth of the worth in proportion to that of the amount. Along x the first term grows and
    the second shrinks, so there is one minimum. At N = N_opt of the unique tokens the derivative is negative, since
    D' > U; at D = U it is positive, since N' > N_opt. Between them bisection finds it; the terms are compared as
    logarithms, for they can be as small as exp(-10^9).
    """
    alpha, beta = law.parameter_exponent.value, law.token_exponent.value
    usable = optimal_parameters(law, unique_tokens)
    products = training_flops / FLOPS_PER_PARAMETER_AND_TOKEN
    token_gain = log(beta * law.token_coefficient.value)
    parameter_gain = log(alpha * law.parameter_coefficient.value)
    low, high = log(usable), log(products / unique_tokens)
    while high - low > 1e-13 * abs(high) + 1e-13:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        excess, repeats = exp(middle) / usable - 1, products / exp(middle) / unique_tokens - 1
        worth_parameters = _worth(excess + 1, 1, decay.excess_parameters)
        worth_tokens = _worth(repeats + 1, 1, decay.repeated_tokens)
        more_tokens = token_gain - beta * log(unique_tokens) - (1 + beta) * log(worth_tokens)
        more_tokens += log(repeats + 1) - repeats / decay.repeated_tokens
        more_parameters = parameter_gain - alpha * log(usable) - (1 + alpha) * log(worth_parameters)
        more_parameters += log(excess + 1) - excess / decay.excess_parameters
        if more_parameters > more_tokens:
            low = middle
        else:
            high = middle
    return exp((low + high) / 2)
