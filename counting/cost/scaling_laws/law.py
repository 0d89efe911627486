"""The parametric scaling law: the loss that a model of N parameters reaches on D tokens.

The form is that of Hoffmann et al. 2022 (arXiv 2203.15556, eq. 10):

    L(N, D) = E + A / N^alpha + B / D^beta        nats per token
"""

import msgspec


class Constant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fitted number, and the ends of its 95 % interval if the fit has one."""

    value: float
    low: float | None = None
    high: float | None = None


class ScalingLaw(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The constants of one fit, their source, and the range of the runs that they were fitted to."""

    name: str
    irreducible_loss: Constant  # E
    parameter_coefficient: Constant  # A
    token_coefficient: Constant  # B
    parameter_exponent: Constant  # alpha
    token_exponent: Constant  # beta
    source: str
    fitted_parameters: tuple[float, float]  # the smallest and the largest model
    fitted_tokens: tuple[float, float]
    runs: int | None = None
    method: str | None = None
    # (E, A, B, alpha, beta) of each resample of the runs. The constants depend on each other, so intervals of N, D and
    # loss follow from these, and not from the ends of the single intervals.
    bootstrap: tuple[tuple[float, float, float, float, float], ...] = ()


def predicted_loss(law: ScalingLaw, parameters: float, tokens: float) -> float:
    """The loss in nats per token of a model of `parameters` trained on `tokens`."""
    loss: float = (
        law.irreducible_loss.value
        + law.parameter_coefficient.value / parameters**law.parameter_exponent.value
        + law.token_coefficient.value / tokens**law.token_exponent.value
    )
    return loss


def extrapolates(law: ScalingLaw, parameters: float, tokens: float) -> bool:
    """Whether `parameters` or `tokens` is outside the range of the runs that the law was fitted to."""
    smallest, largest = law.fitted_parameters
    fewest, most = law.fitted_tokens
    return not (smallest <= parameters <= largest and fewest <= tokens <= most)
