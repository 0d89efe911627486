"""Training runs into a scaling law, with intervals and doubts."""

from collections.abc import Callable, Mapping, Sequence
from math import e, exp, isclose, log
from statistics import median
from typing import TYPE_CHECKING

from counting.cost.fit.budgets import FEWEST_BUDGETS, repeated_budgets
from counting.cost.fit.doubts import (
    doubts_of_extrapolation,
    doubts_of_isoflops,
    doubts_of_law,
    doubts_of_runs,
    doubts_of_search,
    doubts_of_terms,
    orders_from_range,
)
from counting.cost.fit.result import (
    ApproachOptimum,
    FittedLaw,
    FittedOptimum,
    FittedRun,
    IsoflopFit,
    PowerLaw,
)
from counting.cost.fit.runs import TrainedRun, check_runs
from counting.cost.fit.shown import shown_flops
from counting.cost.scaling_laws import (
    FLOPS_PER_PARAMETER_AND_TOKEN,
    Constant,
    ScalingLaw,
    compute_optimum,
    optimum_intervals,
    predicted_loss,
)
from counting.cost.scaling_laws.intervals import LARGEST_LOG, Interval, interval_of
from counting.cost.scaling_laws.law import CONSTANTS, FEWEST_DRAWS, constants_of
from counting.cost.scaling_laws.optimum import log_optimum
from torch_models.errors import ArgumentError, UserError

if TYPE_CHECKING:
    from counting.cost.fit.isoflop import PowerLaws
    from counting.cost.fit.parametric import ParametricFit

RESAMPLES = 1000
FEWEST_RESAMPLES, MOST_RESAMPLES = 100, 5000
LARGER_BUDGET = 10  # times the largest of the runs: the second budget that is answered by default
LARGEST_FLOPS = 1e36
METHOD = (
    "Hoffmann et al. 2022 (arXiv 2203.15556), approach 3: Huber loss of log loss, delta 1e-3, 4,500 starts; 95 % "
    "intervals by bootstrap of the runs"
)
_TERMS = {  # each with its constants
    "parameters": ("parameter_coefficient", "parameter_exponent"),
    "tokens": ("token_coefficient", "token_exponent"),
}
_DIGITS = 10  # of a draw, of which a thousand stand in a file


def fit_law(
    runs: Sequence[TrainedRun],
    *,
    name: str = "fitted",
    source: str = "fitted to training runs",
    training_flops: Sequence[float] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
    check: bool = True,
    columns: Mapping[str, str] | None = None,
    derived: str | None = None,
    show: Callable[[str], None] = lambda text: None,
) -> FittedLaw:
    """Fit the parametric law to `runs`, and IsoFLOP parabolas where budgets repeat.

    `training_flops` are the budgets to answer, counted as the runs' are; by default the largest of the runs and ten
    times it. The same runs, seed and number of resamples give the same result. `check` also fits twenty resamples from
    the full grid, which takes most of the time. `columns` and `derived` say where the runs are from; `show` gets
    progress. Raises UserError for runs that determine no law, and ArgumentError for numbers out of range.
    """
    check_runs(runs)
    _check_arguments(training_flops, resamples, seed)
    from counting.cost.fit.parametric import fit_parametric

    fit = fit_parametric(
        [run.parameters for run in runs],
        [run.tokens for run in runs],
        [run.loss for run in runs],
        resamples=resamples,
        seed=seed,
        check=check,
        show=show,
    )
    undecided = tuple(term for term, decided in zip(_TERMS, fit.decided, strict=True) if not decided)
    law = _law(fit, runs, name, source, undecided)
    per_pair = _flops_per_pair(runs)
    show("fitting the parabolas of budgets that repeat ...")
    isoflop, left_out, isoflop_laws = _isoflop(runs, resamples, seed)
    optima = tuple(_optimum(law, isoflop_laws, flops, why, per_pair) for flops, why in _budgets(runs, training_flops))
    fitted_runs = tuple(_with_residual(run, law) for run in runs)
    doubts = [
        *doubts_of_terms(undecided),
        *doubts_of_law(law, fit.at_bound, resamples, fit.draws_at_bound),
        *doubts_of_runs(runs, fitted_runs, per_pair),
        *doubts_of_search(fit.check),
        *doubts_of_isoflops(isoflop, left_out, optima, runs),
        *doubts_of_extrapolation(optima),
    ]
    of_n, of_d = _optimum_powers(law, per_pair)
    return FittedLaw(
        law=law,
        runs=fitted_runs,
        flops_per_parameter_and_token=per_pair,
        derived=derived,
        columns=dict(columns or {}),
        objective=fit.objective,
        starts=fit.starts,
        at_best=fit.at_best,
        minima=fit.minima,
        resamples=resamples,
        undecided_terms=undecided,
        resamples_at_bound=fit.draws_at_bound,
        seed=seed,
        check=fit.check,
        parameters_power=of_n,
        tokens_power=of_d,
        isoflop=isoflop,
        isoflop_left_out=left_out,
        optima=optima,
        median_residual=median(abs(run.residual) for run in fitted_runs),
        warnings=tuple(doubts),
    )


def _check_arguments(training_flops: Sequence[float], resamples: int, seed: int) -> None:
    for flops in training_flops:
        if isinstance(flops, bool) or not isinstance(flops, int | float) or not 1 <= flops <= LARGEST_FLOPS:
            rule = f"must be FLOPs from 1 to {LARGEST_FLOPS:.0e}, as 5.76e23"
            raise ArgumentError("training_flops", flops, rule)
    if not _is_whole(resamples) or not FEWEST_RESAMPLES <= resamples <= MOST_RESAMPLES:
        rule = f"must be a whole number from {FEWEST_RESAMPLES} to {MOST_RESAMPLES:,}"
        raise ArgumentError("resamples", resamples, rule)
    if not _is_whole(seed) or not 0 <= seed < 2**32:
        raise ArgumentError("seed", seed, f"must be a whole number from 0 to {2**32 - 1:,}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _flops_per_pair(runs: Sequence[TrainedRun]) -> float:
    """C / N D at the median; exactly 6 where that is the difference of rounding."""
    found = median(run.training_flops / (run.parameters * run.tokens) for run in runs)
    return FLOPS_PER_PARAMETER_AND_TOKEN if isclose(found, FLOPS_PER_PARAMETER_AND_TOKEN, rel_tol=1e-9) else found


def _law(
    fit: "ParametricFit", runs: Sequence[TrainedRun], name: str, source: str, undecided: Sequence[str]
) -> ScalingLaw:
    """The law; with a term that is undecided, neither this term nor what follows from both has an interval."""
    draws = tuple(tuple(float(f"{number:.{_DIGITS}g}") for number in draw) for draw in fit.draws)
    constants = {
        field: Constant(value=value)
        if any(field in _TERMS[term] for term in undecided)
        else _around(value, interval_of([draw[index] for draw in draws]))
        for index, (field, value) in enumerate(zip(CONSTANTS, fit.constants, strict=True))
    }
    sizes, tokens = [run.parameters for run in runs], [run.tokens for run in runs]
    return ScalingLaw(
        **constants,
        name=name,
        source=source,
        fitted_parameters=(min(sizes), max(sizes)),
        fitted_tokens=(min(tokens), max(tokens)),
        runs=len(runs),
        method=METHOD,
        bootstrap=() if undecided else draws,  # type: ignore[arg-type]
    )


def _around(value: float, interval: Interval) -> Constant:
    """The value with its interval, which is widened to it if all draws but a few are on one side."""
    return Constant(value=value, low=min(interval.low, value), high=max(interval.high, value))


def _power_of_e(exponent: float) -> float:
    """e^exponent; of runs that say nothing, the largest or smallest power that is still a float."""
    return exp(min(max(exponent, -LARGEST_LOG), LARGEST_LOG))


def _with_residual(run: TrainedRun, law: ScalingLaw) -> FittedRun:
    predicted = predicted_loss(law, run.parameters, run.tokens)
    return FittedRun(
        line=run.line,
        parameters=run.parameters,
        tokens=run.tokens,
        training_flops=run.training_flops,
        loss=run.loss,
        predicted_loss=predicted,
        residual=log(run.loss / predicted),
    )


def _optimum_powers(law: ScalingLaw, per_pair: float) -> tuple[PowerLaw, PowerLaw]:
    """N and D over C at the law's optimum (Hoffmann et al. 2022, eq. 4): powers a = beta / (alpha + beta) and 1 - a.

    C is as the runs have it, `per_pair` x N D.
    """
    of_six = FLOPS_PER_PARAMETER_AND_TOKEN / per_pair

    def powers(constants: Sequence[float]) -> tuple[float, float, float, float]:
        at_one, at_e = log_optimum(constants, of_six), log_optimum(constants, of_six * e)
        return _power_of_e(at_one[0]), at_e[0] - at_one[0], _power_of_e(at_one[1]), at_e[1] - at_one[1]

    return _power_laws(powers(constants_of(law)), [powers(draw) for draw in law.bootstrap])


def _power_laws(
    fitted: Sequence[float], draws: Sequence[tuple[float, float, float, float]]
) -> tuple[PowerLaw, PowerLaw]:
    constants = [
        _around(value, interval_of([draw[index] for draw in draws])) if draws else Constant(value=value)
        for index, value in enumerate(fitted)
    ]
    return (
        PowerLaw(coefficient=constants[0], exponent=constants[1]),
        PowerLaw(coefficient=constants[2], exponent=constants[3]),
    )


def _isoflop(
    runs: Sequence[TrainedRun], resamples: int, seed: int
) -> tuple[IsoflopFit | None, str | None, "PowerLaws | None"]:
    """Approach 2, or why there is none."""
    groups = repeated_budgets(runs)
    if not groups:
        return None, "no budget repeats: it needs four runs of different sizes within 10 % of one budget", None
    from counting.cost.fit.isoflop import fit_isoflops

    budgets, laws = fit_isoflops(groups, resamples=resamples, seed=seed)
    if laws is None:
        used = sum(budget.left_out is None for budget in budgets)
        outside = [
            f"; at {shown_flops(budget.training_flops)}: {budget.left_out}" for budget in budgets if budget.left_out
        ]
        of_these = outside[0] if outside else ""
        number = f"{used} budget has" if used == 1 else f"{used} budgets have"
        return None, f"{number} a minimum among the runs, and a power law needs {FEWEST_BUDGETS}{of_these}", None
    if len(laws.draws) < FEWEST_DRAWS:
        return None, f"only {len(laws.draws)} of {resamples:,} resamples have minima among their runs", None
    of_n, of_d = _power_laws(laws.fitted, laws.draws)
    return IsoflopFit(budgets=budgets, parameters_power=of_n, tokens_power=of_d, bootstrap=laws.draws), None, laws


def _budgets(runs: Sequence[TrainedRun], given: Sequence[float]) -> list[tuple[float, str]]:
    if given:
        return [(flops, "given") for flops in given]
    largest = max(run.training_flops for run in runs)
    return [(largest, "the largest of the runs"), (LARGER_BUDGET * largest, f"{LARGER_BUDGET} times the largest")]


def _optimum(law: ScalingLaw, isoflop: "PowerLaws | None", flops: float, chosen: str, per_pair: float) -> FittedOptimum:
    """Both approaches at a budget as the runs count it: the law is asked for the N and D of the same N D."""
    six_n_d = flops * (FLOPS_PER_PARAMETER_AND_TOKEN / per_pair)
    log_n, log_d = log_optimum(constants_of(law), six_n_d)
    parameters, tokens = _power_of_e(log_n), _power_of_e(log_d)
    parametric = _parametric_optimum(law, six_n_d)
    left_out = f"the law has N {parameters:.3g} and D {tokens:.3g} there, which no run can have"
    return FittedOptimum(
        training_flops=flops,
        chosen=chosen,
        parametric=parametric,
        left_out=None if parametric else left_out,
        isoflop=_isoflop_optimum(isoflop, flops) if isoflop else None,
        beyond_parameters=orders_from_range(parameters, *law.fitted_parameters),
        beyond_tokens=orders_from_range(tokens, *law.fitted_tokens),
    )


def _parametric_optimum(law: ScalingLaw, six_n_d: float) -> ApproachOptimum | None:
    """The law's optimum; None where it is less than one parameter or one token."""
    try:
        compute_optimum(law, six_n_d)
    except UserError:
        return None
    log_n, log_d = log_optimum(constants_of(law), six_n_d)
    parameters, tokens = _power_of_e(log_n), _power_of_e(log_d)
    ratio, loss = _power_of_e(log_d - log_n), predicted_loss(law, parameters, tokens)
    intervals = optimum_intervals(law, six_n_d)
    if intervals is None:
        found = [Constant(value=value) for value in (parameters, tokens, ratio, loss)]
    else:
        found = [
            _around(parameters, intervals.parameters),
            _around(tokens, intervals.tokens),
            _around(ratio, intervals.tokens_per_parameter),
            _around(loss, intervals.loss),
        ]
    return ApproachOptimum(parameters=found[0], tokens=found[1], tokens_per_parameter=found[2], loss=found[3])


def _isoflop_optimum(laws: "PowerLaws", flops: float) -> ApproachOptimum:
    def at(powers: Sequence[float]) -> tuple[float, float, float]:
        of_n, exponent_n, of_d, exponent_d = powers
        log_n, log_d = log(of_n) + exponent_n * log(flops), log(of_d) + exponent_d * log(flops)
        return _power_of_e(log_n), _power_of_e(log_d), _power_of_e(log_d - log_n)

    drawn = [at(draw) for draw in laws.draws]
    parameters, tokens, ratio = (
        _around(value, interval_of([draw[index] for draw in drawn])) for index, value in enumerate(at(laws.fitted))
    )
    return ApproachOptimum(parameters=parameters, tokens=tokens, tokens_per_parameter=ratio, loss=None)
