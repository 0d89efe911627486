"""A scaling law of mixtures of experts: the loss of N active parameters and E experts on D tokens.

Ludziejewski et al. 2025 (arXiv 2502.05172), "Joint MoE Scaling Laws", eq. 4-6 and tables 3-4:

    L = a E'^delta N^(alpha + gamma ln E') + b E'^omega D^(beta + zeta ln E') + c
    1 / E' = 1 / (E - 1 + 1 / (1 / E_start - 1 / E_max)) + 1 / E_max

N is active parameters, with both vocabulary matrices. For each E this has Hoffmann's form, so what holds for a dense
law holds for it; E = 1 is a dense model, of the same fit. The runs have E experts of a dense layer's size, of which a
token uses one. Of other mixtures E is read as an *expansion rate*, the feed-forward parameters that a model has for
each that a token uses: with F of those,

    N_total = N + (E - 1) F

which for the runs' models is the paper's eq. 9-10. That experts may be smaller than a layer, which lowers the loss
further (Krajewski et al. 2024, arXiv 2402.07871), the law does not know.
"""

from math import log, log10

import msgspec

from counting.cost.scaling_laws.inverses import reducible_loss, training_flops_for_loss
from counting.cost.scaling_laws.law import Constant, ScalingLaw, orders_beyond, predicted_loss
from counting.cost.scaling_laws.optimum import compute_optimum
from torch_models.errors import ArgumentError


class MixtureLaw(msgspec.Struct, frozen=True, kw_only=True):
    """The constants of the joint law, their source, and the range of the runs that they were fitted to."""

    name: str
    irreducible_loss: float  # c
    parameter_coefficient: float  # a
    parameter_exponent: float  # alpha, negative
    parameter_coefficient_by_experts: float  # delta
    parameter_exponent_by_experts: float  # gamma
    token_coefficient: float  # b
    token_exponent: float  # beta, negative
    token_coefficient_by_experts: float  # omega
    token_exponent_by_experts: float  # zeta
    start_experts: float  # E_start
    most_experts: float  # E_max
    source: str
    fitted_parameters: tuple[float, float]  # active
    fitted_tokens: tuple[float, float]
    fitted_experts: tuple[float, float]


LUDZIEJEWSKI_2025 = MixtureLaw(
    name="ludziejewski-2025",
    irreducible_loss=1.3637,
    parameter_coefficient=35.91,
    parameter_exponent=-0.1889,
    parameter_coefficient_by_experts=-0.2285,
    parameter_exponent_by_experts=0.0098,
    token_coefficient=35.98,
    token_exponent=-0.1775,
    token_coefficient_by_experts=0.5529,
    token_exponent_by_experts=-0.0259,
    start_experts=2.0732,
    most_experts=290.4521,
    source="Ludziejewski et al. 2025 (arXiv 2502.05172), table 3, fitted to over 280 runs on FineWeb-Edu",
    fitted_parameters=(79e6, 2.7e9),  # appendix E, as are the others; the largest in total has 5.0 billion parameters
    fitted_tokens=(500e6, 80e9),
    fitted_experts=(1, 32),
)
LARGEST_EXPANSION_RATE = 1000.0
VOCABULARY_OF_RUNS, HEAD_SIZE_OF_RUNS = 50257, 64  # of the runs: appendix A.1 and A.3, as many layers as heads of 64


class MixtureOptimum(msgspec.Struct, frozen=True, kw_only=True):
    """The mixture of lowest loss for a compute budget at an expansion rate, beside the dense model of the same law."""

    scaling_law: str
    expansion_rate: float  # E
    parameters: int  # active
    total_parameters: int  # of a model shaped as the runs' models
    tokens: int
    tokens_per_parameter: float  # active
    predicted_loss: float  # nats per token
    dense_parameters: int
    dense_tokens: int
    dense_loss: float
    dense_flops: float  # the training FLOPs with which a dense model reaches `predicted_loss`
    dense_flops_ratio: float  # those over the budget's
    orders_beyond: float  # by how many orders of magnitude N, D or E is beyond the runs of the fit


def mixture_optimum(
    training_flops: float, expansion_rate: float, law: MixtureLaw = LUDZIEJEWSKI_2025
) -> MixtureOptimum:
    """The active N and the D of lowest loss at 6 N D = `training_flops` (eq. 7).

    Raises ArgumentError for an expansion rate outside 1 to 1000, UserError if N or D would be 0.
    """
    check_expansion_rate(expansion_rate)
    of_mixture, dense = law_at(law, expansion_rate), law_at(law, 1)
    best, best_dense = compute_optimum(of_mixture, training_flops), compute_optimum(dense, training_flops)
    loss = predicted_loss(of_mixture, best.parameters, best.tokens)
    dense_flops = training_flops_for_loss(dense, reducible_loss(of_mixture, best.parameters, best.tokens))
    return MixtureOptimum(
        scaling_law=law.name,
        expansion_rate=expansion_rate,
        parameters=best.parameters,
        total_parameters=round(total_parameters(best.parameters, expansion_rate)),
        tokens=best.tokens,
        tokens_per_parameter=best.tokens / best.parameters,
        predicted_loss=loss,
        dense_parameters=best_dense.parameters,
        dense_tokens=best_dense.tokens,
        dense_loss=predicted_loss(dense, best_dense.parameters, best_dense.tokens),
        dense_flops=dense_flops,
        dense_flops_ratio=dense_flops / training_flops,
        orders_beyond=orders_beyond_mixtures(law, best.parameters, best.tokens, expansion_rate),
    )


def check_expansion_rate(expansion_rate: object) -> None:
    """Raises ArgumentError if it is not a number from 1 to 1000."""
    number = isinstance(expansion_rate, int | float) and not isinstance(expansion_rate, bool)
    if not (number and 1 <= expansion_rate <= LARGEST_EXPANSION_RATE):  # type: ignore[operator]
        rule = f"must be a number from 1, a dense model, to {LARGEST_EXPANSION_RATE:g}, as 32 for 8 of 256 experts"
        raise ArgumentError("expansion_rate", expansion_rate, rule)


def law_at(law: MixtureLaw, expansion_rate: float) -> ScalingLaw:
    """The joint law at E = `expansion_rate`, which has Hoffmann's form; N is active parameters (table 4)."""
    experts = _saturating(law, expansion_rate)
    return ScalingLaw(
        name=f"{law.name} at E = {expansion_rate:g}",
        irreducible_loss=Constant(value=law.irreducible_loss),
        parameter_coefficient=Constant(value=law.parameter_coefficient * experts**law.parameter_coefficient_by_experts),
        token_coefficient=Constant(value=law.token_coefficient * experts**law.token_coefficient_by_experts),
        parameter_exponent=Constant(value=-(law.parameter_exponent + law.parameter_exponent_by_experts * log(experts))),
        token_exponent=Constant(value=-(law.token_exponent + law.token_exponent_by_experts * log(experts))),
        source=law.source,
        fitted_parameters=law.fitted_parameters,
        fitted_tokens=law.fitted_tokens,
    )


def _saturating(law: MixtureLaw, expansion_rate: float) -> float:
    """E', which begins at E_start for E = 1 and ends at E_max (eq. 4, after Clark et al. 2022, arXiv 2202.01169)."""
    begin = 1 / (1 / law.start_experts - 1 / law.most_experts)
    return 1 / (1 / (expansion_rate - 1 + begin) + 1 / law.most_experts)


def total_parameters(active: float, expansion_rate: float) -> float:
    """N_total of a model of the runs' shape with `active` parameters (eq. 9-10).

    With width d, d / 64 layers and a vocabulary of V: N = 2 d V + 13 d^3 / 64 and N_total = N + 9 (E - 1) d^3 / 64. The
    cubic has one positive d, which bisection finds.
    """
    low, high = 0.0, max(1.0, (active * HEAD_SIZE_OF_RUNS) ** (1 / 3))
    for _ in range(100):
        width = (low + high) / 2
        if 2 * width * VOCABULARY_OF_RUNS + 13 * width**3 / HEAD_SIZE_OF_RUNS < active:
            low = width
        else:
            high = width
    inactive: float = 9 * (expansion_rate - 1) * high**3 / HEAD_SIZE_OF_RUNS
    return active + inactive


def orders_beyond_mixtures(law: MixtureLaw, parameters: float, tokens: float, expansion_rate: float) -> float:
    """By how many orders of magnitude N, D or E, whichever is farthest, is beyond the runs of the fit, or 0."""
    of_sizes = orders_beyond(law_at(law, expansion_rate), parameters, tokens)
    return max(of_sizes, log10(expansion_rate / law.fitted_experts[1]))
