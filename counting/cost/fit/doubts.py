"""What is doubtful about a fit, in one line each."""

from collections.abc import Sequence
from math import log10
from statistics import median

from counting.cost.fit.result import FittedOptimum, FittedRun, GridCheck, IsoflopFit
from counting.cost.fit.runs import TrainedRun
from counting.cost.fit.shown import listed_lines, shown_flops
from counting.cost.scaling_laws import FLOPS_PER_PARAMETER_AND_TOKEN, Constant, ScalingLaw

FEW_RUNS = 30
FEW_ISOFLOPS = 5
SHORT_SPAN = 10.0  # of C, largest / smallest
UNDECIDED = 2.0  # high / low of an exponent's interval
MANY_AT_BOUND = 0.025  # of the resamples: as many as an interval leaves out at one end
FAR_RESIDUAL = 10.0  # times the median of the absolute residuals
_SMALLEST_FAR = 0.01  # of the logarithm of the loss: no run is an outlier by less than 1 %
_NOT_SIX = 1.1  # C / 6 N D of a file that gives all three
WORTH_TELLING = 1e-3  # of the objective, by which another minimum of a resample is better
_TERMS = {
    "parameters": ("parameter term", "A and alpha"),
    "tokens": ("token term", "B and beta"),
}
_NAMES = {
    "irreducible_loss": "irreducible loss",
    "parameter_exponent": "parameter exponent",
    "token_exponent": "token exponent",
}


def doubts_of_terms(undecided: Sequence[str]) -> list[str]:
    """Terms, `parameters` or `tokens`, without which the runs are described as well."""
    return [
        f"the runs do not decide the {_TERMS[term][0]}: without it the law describes them as well, so "
        f"{_TERMS[term][1]} have no interval, and neither have N and D of a budget"
        for term in undecided
    ]


def doubts_of_runs(runs: Sequence[TrainedRun], residuals: Sequence[FittedRun], per_pair: float) -> list[str]:
    """Too few runs, budgets that lie close, outliers, and FLOPs that are not 6 N D."""
    found: list[str] = []
    if len(runs) < FEW_RUNS:
        found.append(
            f"{len(runs)} runs are few for five constants: below {FEW_RUNS}, intervals by resampling are too narrow"
        )
    if min(min(run.parameters, run.tokens) for run in runs) < 1:
        found.append("N or D of a run is below 1: give both as plain numbers, and not in millions or billions")
    budgets = [run.training_flops for run in runs]
    span = max(budgets) / min(budgets)
    if span < SHORT_SPAN:
        found.append(f"the runs' budgets span a factor of {span:.2g}: less than one order of magnitude decides little")
    ratio = per_pair / FLOPS_PER_PARAMETER_AND_TOKEN
    if not 1 / _NOT_SIX < ratio < _NOT_SIX:
        found.append(
            f"the file's FLOPs are {ratio:.2g} × 6 N D at the median: budgets here are the file's FLOPs; elsewhere the "
            "law is followed with 6 N D"
        )
    far = FAR_RESIDUAL * median(abs(run.residual) for run in residuals)
    outliers = [run for run in residuals if abs(run.residual) > max(far, _SMALLEST_FAR)]
    if outliers:
        worst = max(outliers, key=lambda run: abs(run.residual))
        lines = listed_lines([run.line for run in outliers])
        found.append(
            f"{lines} {'lies' if len(outliers) == 1 else 'lie'} far from the law, up to {worst.residual:+.1%}, over "
            f"{FAR_RESIDUAL:g} times the median residual: if a run diverged or is unlike the others, leave it out"
        )
    return found


def doubts_of_law(law: ScalingLaw, at_bound: Sequence[bool], resamples: int, drawn_at_bound: int) -> list[str]:
    """Constants at a bound, and exponents that the runs do not decide. `at_bound` is of E, A, B, alpha, beta."""
    found = []
    constants = (None, None, "parameter_exponent", "token_exponent")
    ends = ("irreducible_loss", *constants)
    stuck = [name for name, ends_there in zip(ends, at_bound, strict=True) if ends_there and name]
    for name in stuck:
        found.append(f"the {_NAMES[name]} ends at a bound, {getattr(law, name).value:.3g}: the runs do not decide it")
    for name in ("parameter_exponent", "token_exponent"):
        constant: Constant = getattr(law, name)
        low, high = constant.low, constant.high
        if name not in stuck and low is not None and high is not None and high > UNDECIDED * low:
            found.append(f"the runs do not decide the {_NAMES[name]}: {low:.3g} to {high:.3g}")
    if drawn_at_bound > MANY_AT_BOUND * resamples:
        found.append(
            f"{drawn_at_bound / resamples:.0%} of the resamples end at a bound: intervals say less than they seem to"
        )
    return found


def doubts_of_search(check: GridCheck | None) -> list[str]:
    """Resamples of which the full grid found a better minimum than the few starts."""
    if check is None or check.agreed == check.resamples or check.largest_excess < WORTH_TELLING:
        return []
    missed = check.resamples - check.agreed
    have = "has" if missed == 1 else "have"
    return [
        f"of {check.resamples} resamples fitted from the full grid, {missed} {have} a better minimum there, by up to "
        f"{check.largest_excess:.1%} (told from {WORTH_TELLING:.1%} on): the intervals may be too narrow"
    ]


def doubts_of_isoflops(
    isoflop: IsoflopFit | None, left_out: str | None, optima: Sequence[FittedOptimum], runs: Sequence[TrainedRun]
) -> list[str]:
    """Few budgets, and optima of the two approaches that do not meet."""
    if isoflop is None:
        return [f"no IsoFLOP parabolas: {left_out}"]
    used = sum(budget.left_out is None for budget in isoflop.budgets)
    found = []
    if used < FEW_ISOFLOPS:
        found.append(f"IsoFLOP power laws go through {used} budgets: below {FEW_ISOFLOPS}, their intervals say little")
    apart = [
        at for at in optima if at.isoflop and at.parametric and _apart(at.parametric.parameters, at.isoflop.parameters)
    ]
    if apart:
        budgets = " and ".join(shown_flops(at.training_flops) for at in apart)
        per_pair = [run.training_flops / (run.parameters * run.tokens) for run in runs]
        varies = f", or C / N D not be one number: it is {min(per_pair):.3g} to {max(per_pair):.3g}"
        found.append(
            f"the intervals of N by the two approaches do not meet at {budgets}: the law's form may not hold"
            f"{varies if max(per_pair) > _NOT_SIX * min(per_pair) else ''}"
        )
    return found


def doubts_of_extrapolation(optima: Sequence[FittedOptimum]) -> list[str]:
    """Optima that are none, and those outside the runs, by how many orders of magnitude."""
    found = []
    for at in optima:
        if at.left_out:
            found.append(f"at {shown_flops(at.training_flops)} there is no optimum: {at.left_out}")
            continue
        beyond = [
            f"{name} {_shown(value)}" for name, value in (("N", at.beyond_parameters), ("D", at.beyond_tokens)) if value
        ]
        if beyond:
            found.append(f"at {shown_flops(at.training_flops)} the optimum lies outside the runs: {', '.join(beyond)}")
    return found


def orders_from_range(value: float, smallest: float, largest: float) -> float:
    """Orders of magnitude of `value` above the largest, below 0 under the smallest; 0 within."""
    if value > largest:
        return log10(value / largest)
    return -log10(smallest / value) if value < smallest else 0.0


def _shown(orders: float) -> str:
    where = "above the largest" if orders > 0 else "below the smallest"
    return f"{abs(orders):.2g} orders of magnitude {where}"


def _apart(one: Constant, other: Constant) -> bool:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.high < other.low or other.high < one.low
