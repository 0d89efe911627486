"""The first screen of `fit`: the law with its intervals, its residuals, and both approaches side by side."""

from math import isclose
from typing import TYPE_CHECKING

from counting.report.format import NONE, numbered, readable, readable_range, scientific, signed_percent, three_digits
from counting.report.results import Fitted
from counting.report.screen.lines import Lines

if TYPE_CHECKING:
    from counting.cost.fit.result import ApproachOptimum, FittedLaw, FittedOptimum, PowerLaw
    from counting.cost.scaling_laws import Constant

_MOST_BUDGETS_SHOWN = 3  # so that all fits a screen of 30 lines
_CONSTANTS = (
    ("E, irreducible loss", "irreducible_loss"),
    ("A, of parameters", "parameter_coefficient"),
    ("B, of tokens", "token_coefficient"),
    ("alpha, of parameters", "parameter_exponent"),
    ("beta, of tokens", "token_exponent"),
)


def fit_text(result: Fitted, width: int) -> str:
    """The screen."""
    lines, fitted = Lines(width), result.fitted
    law = fitted.law
    lines.heading(
        f"A law of {numbered(len(fitted.runs), 'run')}: N {_from_to(*law.fitted_parameters)}, D "
        f"{_from_to(*law.fitted_tokens)}"
    )
    rows: list[tuple[str, ...]] = [("constant", "value", "95 % from", "to")]
    for label, field in _CONSTANTS:
        constant: Constant = getattr(law, field)
        rows.append((label, *(_digits(value) for value in (constant.value, constant.low, constant.high))))
    lines.fact("law", "L = E + A / N^alpha + B / D^beta")
    lines.columns(rows)
    _residuals(lines, fitted)
    _exponents(lines, fitted)
    for at in fitted.optima[:_MOST_BUDGETS_SHOWN]:
        _optimum(lines, at)
    if len(fitted.optima) > _MOST_BUDGETS_SHOWN:
        lines.text(f"and {len(fitted.optima) - _MOST_BUDGETS_SHOWN} budgets more, which the JSON document has")
    _fit(lines, fitted)
    lines.fact("written", f"{result.output}, the law {law.name}")
    return "\n".join(lines.lines)


def _residuals(lines: Lines, fitted: "FittedLaw") -> None:
    lowest = min(fitted.runs, key=lambda run: run.residual)
    highest = max(fitted.runs, key=lambda run: run.residual)
    ends = [f"{signed_percent(run.residual, 1)} (line {run.line})" for run in (lowest, highest)]
    lines.fact(
        "residuals",
        f"{100 * fitted.median_residual:.2g} % at the median, {ends[0]} to {ends[1]}, measured over predicted",
    )


def _exponents(lines: Lines, fitted: "FittedLaw") -> None:
    lines.fact("best N, D", _of_powers(fitted.parameters_power, fitted.tokens_power))
    if fitted.isoflop is None:
        lines.fact("IsoFLOP", NONE)
        return
    used = sum(budget.left_out is None for budget in fitted.isoflop.budgets)
    lines.fact(
        "IsoFLOP",
        f"{_of_powers(fitted.isoflop.parameters_power, fitted.isoflop.tokens_power)}; minima of "
        f"{numbered(used, 'parabola')}",
    )


def _of_powers(of_n: "PowerLaw", of_d: "PowerLaw") -> str:
    return f"N ~ C^{_with_interval(of_n.exponent)}, D ~ C^{_with_interval(of_d.exponent)}"


def _optimum(lines: Lines, at: "FittedOptimum") -> None:
    chosen = "" if at.chosen == "given" else f"; {at.chosen}"
    found = f"{NONE}: {at.left_out}" if at.parametric is None else _of_approach(at.parametric)
    lines.fact(f"{at.training_flops:.3g} FLOPs", f"{found}{chosen}")
    if at.isoflop is not None:
        lines.fact("IsoFLOP", _of_approach(at.isoflop))


def _of_approach(at: "ApproachOptimum") -> str:
    loss = "" if at.loss is None else f", loss {_with_interval(at.loss)}"
    return (
        f"N {_count(at.parameters)}, D {_count(at.tokens)}, {three_digits(at.tokens_per_parameter.value)} per N{loss}"
    )


def _fit(lines: Lines, fitted: "FittedLaw") -> None:
    check = fitted.check
    agreed = "" if check is None else f"; {check.agreed} of {check.resamples} checked from all starts agree"
    lines.fact(
        "intervals",
        f"{fitted.resamples:,} resamples from the best {fitted.minima} minima of {fitted.starts:,} starts{agreed}",
    )
    if fitted.undecided_terms:
        terms = " and that of ".join(fitted.undecided_terms)
        lines.fact("undecided", f"the term of {terms}, and so N and D: no intervals of these")
    ratio = fitted.flops_per_parameter_and_token / 6
    if not isclose(ratio, 1, rel_tol=0.005):
        lines.fact("FLOPs", f"as in the file, {three_digits(ratio)} × 6 N D at the median")
    if fitted.derived is not None:
        lines.fact("not in the file", fitted.derived)


def _from_to(low: float, high: float) -> str:
    return f"{readable(low)} to {readable(high)}"


def _count(constant: "Constant") -> str:
    low, high = constant.low, constant.high
    within = "" if low is None or high is None else f" ({readable_range(low, high)})"
    return f"{readable(constant.value)}{within}"


def _with_interval(constant: "Constant") -> str:
    low, high = constant.low, constant.high
    within = "" if low is None or high is None else f" ({_places(low)}{NONE}{_places(high)})"
    return f"{_places(constant.value)}{within}"


def _places(value: float) -> str:
    return f"{value:.3f}" if value < 1e6 else f"{value:.3g}"


def _digits(value: float | None) -> str:
    """Four digits; of what is very large or small, with a power of ten."""
    if value is None:
        return NONE
    return f"{value:.4g}" if 1e-3 <= value < 1e4 else f"{value:,.0f}" if 1e4 <= value < 1e7 else str(scientific(value))
