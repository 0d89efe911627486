"""The parametric scaling law: the loss that a model of N parameters reaches on D tokens.

The form is that of Hoffmann et al. 2022 (arXiv 2203.15556, eq. 10):

    L(N, D) = E + A / N^alpha + B / D^beta        nats per token
"""

from collections.abc import Sequence
from math import inf, isfinite, log, log10

import msgspec

from torch_models.errors import ConfigError

CONSTANTS = (  # in the order of a draw of the bootstrap: E, A, B, alpha, beta
    "irreducible_loss",
    "parameter_coefficient",
    "token_coefficient",
    "parameter_exponent",
    "token_exponent",
)
RANGES = ("fitted_parameters", "fitted_tokens")
LARGEST_EXPONENT = 3  # of 10^36 parameters or tokens, the most that a budget buys, the power is still a float
LARGEST_CONSTANT = 1e300  # of E, A and B: beyond it, their sum is no number any more
FEWEST_DRAWS = 40  # of which 2.5 % are one
LONGEST_NAME = 60
NEAR = 0.01  # of a constant: so far it may be from draws that are all alike


class Constant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fitted number, and the ends of its 95 % interval if the fit has one."""

    value: float
    low: float | None = None
    high: float | None = None


class ScalingLaw(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The constants of one fit, their source, and the range of the runs that they were fitted to.

    Raises `ConfigError` for a constant that is not positive or outside its interval, for a range that is none, and for
    draws of the bootstrap that are not positive, too few, or far from the constants.
    """

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

    def __post_init__(self) -> None:
        if self.name != self.name.strip() or not self.name.isprintable() or "," in self.name or not self.name:
            raise ConfigError("name", self.name, "must be a name on one line, without commas and outer spaces")
        if len(self.name) > LONGEST_NAME:
            raise ConfigError("name", self.name, f"must have at most {LONGEST_NAME} characters")
        for field in CONSTANTS:
            _check_constant(field, getattr(self, field))
        for field in RANGES:
            low, high = getattr(self, field)
            if not 0 < low <= high < inf:
                raise ConfigError(field, [low, high], "must be the smallest and the largest, two numbers above 0")
        if self.runs is not None and self.runs < 1:
            raise ConfigError("runs", self.runs, "must be a whole number, at least 1")
        _check_draws(self.bootstrap)
        if self.bootstrap:
            _check_constants_are_near(constants_of(self), self.bootstrap)


def predicted_loss(law: ScalingLaw, parameters: float, tokens: float) -> float:
    """The loss in nats per token of a model of `parameters` trained on `tokens`."""
    return loss_of_constants(constants_of(law), parameters, tokens)


def constants_of(law: ScalingLaw) -> tuple[float, float, float, float, float]:
    """(E, A, B, alpha, beta)."""
    return (
        law.irreducible_loss.value,
        law.parameter_coefficient.value,
        law.token_coefficient.value,
        law.parameter_exponent.value,
        law.token_exponent.value,
    )


def loss_of_constants(constants: Sequence[float], parameters: float, tokens: float) -> float:
    """The loss in nats per token, of E, A, B, alpha, beta as given."""
    irreducible, of_parameters, of_tokens, alpha, beta = constants
    loss: float = irreducible + of_parameters / parameters**alpha + of_tokens / tokens**beta
    return loss


def extrapolates(law: ScalingLaw, parameters: float, tokens: float) -> bool:
    """Whether `parameters` or `tokens` is outside the range of the runs that the law was fitted to."""
    smallest, largest = law.fitted_parameters
    fewest, most = law.fitted_tokens
    return not (smallest <= parameters <= largest and fewest <= tokens <= most)


def orders_beyond(law: ScalingLaw, parameters: float, tokens: float) -> float:
    """By how many orders of magnitude N or D, whichever is farther, is outside what the law was fitted to, or 0."""
    ends = ((parameters, law.fitted_parameters), (tokens, law.fitted_tokens))
    return max(0.0, *(log10(max(low / number, number / high)) for number, (low, high) in ends))


def _check_constant(field: str, constant: Constant) -> None:
    """Raises ConfigError if the constant is not above 0, or outside its interval."""
    value, low, high = constant.value, constant.low, constant.high
    if not 0 < value < inf:
        raise ConfigError(f"{field}.value", value, "must be a number above 0")
    largest = LARGEST_EXPONENT if field.endswith("exponent") else LARGEST_CONSTANT
    if value > largest:
        raise ConfigError(f"{field}.value", value, f"must be a number above 0 and at most {largest:g}")
    if (low is None) != (high is None):
        given = "low" if high is None else "high"
        rule = "is one end of an interval: give both, low and high, or neither"
        raise ConfigError(f"{field}.{given}", low if high is None else high, rule)
    if low is not None and not 0 <= low <= value:
        raise ConfigError(f"{field}.low", low, f"must be from 0 to the value, {value:g}")
    if high is not None and not value <= high < inf:
        raise ConfigError(f"{field}.high", high, f"must be a number, at least the value, {value:g}")


def _check_draws(draws: Sequence[Sequence[float]]) -> None:
    """Raises ConfigError for draws of which one is no set of constants, or which are too few for an interval."""
    for number, draw in enumerate(draws):
        numbers = all(map(isfinite, draw)) and draw[0] >= 0 and min(draw[1:]) > 0
        if not numbers or max(draw[:3]) > LARGEST_CONSTANT or max(draw[3:]) > LARGEST_EXPONENT:
            rule = f"must be E, A, B, alpha, beta, all positive, the last two at most {LARGEST_EXPONENT}"
            raise ConfigError(f"bootstrap[{number}]", list(draw), rule)
    if 0 < len(draws) < FEWEST_DRAWS:
        rule = f"must be at least {FEWEST_DRAWS} draws for an interval of 95 %, or none"
        raise ConfigError("bootstrap", f"{len(draws)} draws", rule)


def _check_constants_are_near(constants: Sequence[float], draws: Sequence[Sequence[float]]) -> None:
    """Raises ConfigError for a constant that is farther from the range of its draws than that range is wide.

    A and B are compared as logarithms. A constant may be outside its draws, which can all be on one side of it.
    """
    for index, (field, value) in enumerate(zip(CONSTANTS, constants, strict=True)):
        low, high = (end(draw[index] for draw in draws) for end in (min, max))
        if field.endswith("coefficient"):
            beyond, width, near = max(log(low) - log(value), log(value) - log(high)), log(high) - log(low), NEAR
        else:
            beyond, width, near = max(low - value, value - high), high - low, NEAR * value
        if beyond > width + near:
            rule = f"must be near its draws in the bootstrap, which are from {low:g} to {high:g}"
            raise ConfigError(f"{field}.value", value, rule)
