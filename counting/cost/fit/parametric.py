"""Approach 3 of Hoffmann et al. 2022 (arXiv 2203.15556, §3.3 and appendix D.2): the parametric law, and its bootstrap.

The law is fitted from every start of a grid of 4,500. The bootstrap draws as many runs as there are, with replacement,
and fits each such resample from the best different minima of the grid.

Shape suffixes: P points, R runs, B resamples, C the five constants (log A, log B, log E, alpha, beta).
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from counting.cost.fit.arrays import Flags, Floats, Places
from counting.cost.fit.minimiser import Minima, minimise
from counting.cost.fit.objective import HUBER_DELTA, HuberObjective
from counting.cost.fit.result import GridCheck
from counting.cost.fit.work import in_threads

Show = Callable[[str], None]

# The starts of appendix D.2: a, b, e, alpha, beta. The loss has a - alpha log N, with A = e^a.
GRID = (
    range(0, 30, 5),
    range(0, 30, 5),
    (-1.0, -0.5, 0.0, 0.5, 1.0),
    (0.0, 0.5, 1.0, 1.5, 2.0),
    (0.0, 0.5, 1.0, 1.5, 2.0),
)
BEST_MINIMA = 5  # that resamples start from
CHECKED_RESAMPLES = 20
_CHECKED_RUNS = 5_000  # runs x checked resamples, as far as three of these remain: the time of the check
# Where a fit may not leave: an exponent of 0 makes A / N^alpha a second E; with an exponent above the grid's, a term
# changes the smallest runs only; and an E of a thousandth of the lowest loss is none.
LOWEST_EXPONENT, HIGHEST_EXPONENT = 0.01, 2.5
SMALLEST_SHARE_OF_LOSS = 1e-3
_SAME = 1e-6  # relative difference of the objective, below which two minima are one; and, of runs without noise:
_EXACT = 1e-9  # an objective that is 0 but for rounding, its runs off by 1e-6
_LARGEST_LOG = 690.0  # e^690 and e^-690 are still floats
_NUMBERS = 2**20  # points x runs at once: with fewer, calls of numpy take longer than what they compute
_POLISHED = 16  # of the ends of a quick pass
_AT_BOUND = 1e-9
_NO_TERM = -700.0  # a or b, centred, of a term that is left out: e^-700 is 0 beside any loss
DECIDED = 9.21  # 99 % of chi-squared with two degrees of freedom: a term has a coefficient and an exponent
_ROUNDING = 1e-6  # residuals below it are those of losses as they are written, and say nothing


class ParametricFit(NamedTuple):
    """The constants in the order E, A, B, alpha, beta, and those of each resample."""

    constants: tuple[float, ...]
    draws: tuple[tuple[float, ...], ...]
    objective: float  # the sum of Huber losses
    starts: int
    at_best: int
    minima: int
    at_bound: tuple[bool, ...]  # of each constant
    draws_at_bound: int
    decided: tuple[bool, bool]  # the term of parameters, and that of tokens
    check: GridCheck | None


class _Fitter:
    """The runs, their objective and the box; `minima` of any starts, on threads."""

    def __init__(self, parameters: Floats, tokens: Floats, losses: Floats) -> None:
        self.objective = HuberObjective(parameters, tokens, losses)
        low_loss, high_loss = float(losses.min()), float(losses.max())
        exponents = [LOWEST_EXPONENT] * 2, [HIGHEST_EXPONENT] * 2
        self.lower_C = np.array([-np.inf, -np.inf, np.log(SMALLEST_SHARE_OF_LOSS * low_loss), *exponents[0]])
        self.upper_C = np.array([np.inf, np.inf, np.log(high_loss), *exponents[1]])
        self.grid_PC = self.objective.centred(np.array(list(itertools.product(*GRID)), dtype=np.float64))

    def minima(
        self,
        starts_PC: Floats,
        weights: Callable[[slice], Floats | None],
        *,
        quick: bool = False,
        without: int | None = None,
    ) -> Minima:
        """The minima from all starts; `weights` of a part of the starts is what each run counts there.

        `without` is the place of a or b, whose term is then left out.
        """
        lower_C, upper_C = self.lower_C.copy(), self.upper_C.copy()
        if without is not None:
            lower_C[without] = upper_C[without] = _NO_TERM
        points = max(1, _NUMBERS // self.objective.runs)
        parts = [slice(first, first + points) for first in range(0, len(starts_PC), points)]
        found = in_threads(lambda part: self._part(starts_PC[part], weights(part), quick, lower_C, upper_C), parts)
        return Minima(*(np.concatenate(each) for each in zip(*found, strict=True)))

    def _part(
        self, starts_PC: Floats, weights_PR: Floats | None, quick: bool, lower_C: Floats, upper_C: Floats
    ) -> Minima:
        def weighted(points_PC: Floats, numbers: Places) -> tuple[Floats, Floats]:
            if weights_PR is None or len(weights_PR) == 1:
                return self.objective(points_PC, weights_PR)
            return self.objective(points_PC, weights_PR[numbers])

        with np.errstate(all="ignore"):  # far out on a line of search; the minimiser takes no such step
            if quick:
                return minimise(weighted, starts_PC, lower_C, upper_C, slope=1e-3, gain=1e-5)
            return minimise(weighted, starts_PC, lower_C, upper_C)


def fit_parametric(
    parameters: Sequence[float],
    tokens: Sequence[float],
    losses: Sequence[float],
    *,
    resamples: int,
    seed: int,
    check: bool,
    show: Show,
) -> ParametricFit:
    """Fit the law to runs of N `parameters`, D `tokens` and `losses`; `show` gets progress.

    The result is the same on any number of threads. With `check`, the first `CHECKED_RESAMPLES`, fewer of more than 250
    runs, are also fitted from the full grid.
    """
    fitter = _Fitter(np.array(parameters), np.array(tokens), np.array(losses))
    show(f"fitting {len(losses)} runs from {len(fitter.grid_PC):,} starts ...")
    whole = fitter.minima(fitter.grid_PC, lambda part: None)
    best = _different(whole)
    starts_PC = whole.points[best]
    weights_BR = _resampled(len(losses), resamples, seed)
    draws_BC, values_B = _bootstrap(fitter, starts_PC, weights_BR, show)
    most = min(CHECKED_RESAMPLES, max(3, _CHECKED_RUNS // len(losses)))
    checked = _check(fitter, weights_BR[:most], values_B, show) if check else None
    show("fitting the runs without either term ...")
    decided = [_is_decided(fitter, starts_PC[0], float(whole.values[best[0]]), place) for place in (0, 1)]
    fitted = fitter.objective.printed(starts_PC[:1])
    drawn = fitter.objective.printed(draws_BC)
    at_bound = _at_bound(fitted, fitter)
    return ParametricFit(
        constants=_constants(fitted)[0],
        draws=tuple(_constants(drawn)),
        objective=float(whole.values[best[0]]) * HUBER_DELTA * len(losses),
        starts=len(fitter.grid_PC),
        at_best=int(_as_low(whole.values, whole.values[best[0]]).sum()),
        minima=len(best),
        at_bound=(bool(at_bound[0, 2]), False, False, bool(at_bound[0, 3]), bool(at_bound[0, 4])),
        draws_at_bound=int(_at_bound(drawn, fitter).any(axis=1).sum()),
        decided=(decided[0], decided[1]),
        check=checked,
    )


def _is_decided(fitter: _Fitter, fitted_C: Floats, value: float, place: int) -> bool:
    """Whether the runs are described worse without the term of the coefficient at `place`.

    The tau test of robust regression (Hampel et al. 1986, "Robust Statistics", §7.2): with psi the derivative of
    Huber's loss rho, 2 sum(rho without - rho) mean(psi') / mean(psi^2) is chi-squared distributed if the term is none.
    """
    starts_PC = np.concatenate([fitted_C[None], fitter.grid_PC])
    starts_PC[:, [place, place + 3]] = _NO_TERM, LOWEST_EXPONENT
    without = fitter.minima(np.unique(starts_PC, axis=0), lambda part: None, without=place)
    residuals_R = fitter.objective.residuals(fitted_C)
    # mean(psi') is the share of residuals within delta; where these are few, from as wide a middle as half of them.
    middle = max(HUBER_DELTA, float(np.median(np.abs(residuals_R))))
    within = float((np.abs(residuals_R) <= middle).mean()) * HUBER_DELTA / middle
    psi_2 = float((np.clip(residuals_R, -HUBER_DELTA, HUBER_DELTA) ** 2).mean())
    more = (float(without.values.min()) - value) * HUBER_DELTA * fitter.objective.runs
    return 2 * more * within / max(psi_2, _ROUNDING**2) > DECIDED


def _different(minima: Minima) -> list[int]:
    """The numbers of the best minima of which no two are one, at most `BEST_MINIMA`, the best one first."""
    best: list[int] = []
    for number in np.argsort(minima.values, kind="stable"):
        if not best or not _as_low(minima.values[number], minima.values[best[-1]]):
            best.append(int(number))
        if len(best) == BEST_MINIMA:
            break
    return best


def _as_low(values: Floats, lowest: float) -> Flags:
    """Which values are the lowest one, but for rounding."""
    as_low: Flags = values <= lowest * (1 + _SAME) + _EXACT
    return as_low


def _resampled(runs: int, resamples: int, seed: int) -> Floats:
    """How often each resample draws each run; every row sums to the number of runs."""
    drawn = np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), size=resamples)
    return drawn.astype(np.float64)


def _bootstrap(fitter: _Fitter, starts_PC: Floats, weights_BR: Floats, show: Show) -> tuple[Floats, Floats]:
    """The best minimum of each resample from any of the starts, and its value."""
    found: list[Minima] = []
    for number, start in enumerate(starts_PC, start=1):
        show(f"fitting {len(weights_BR):,} resamples from minimum {number} of {len(starts_PC)} ...")
        repeated = np.repeat(start[None], len(weights_BR), axis=0)
        found.append(fitter.minima(repeated, lambda part: weights_BR[part]))
    values = np.stack([minima.values for minima in found])
    best_B = values.argmin(axis=0)
    points = np.stack([minima.points for minima in found])
    every = np.arange(len(weights_BR))
    return points[best_B, every], values[best_B, every]


def _check(fitter: _Fitter, weights_BR: Floats, values_B: Floats, show: Show) -> GridCheck:
    """Fit resamples from the full grid: a quick pass from all starts, then the best ends to the full tolerance."""
    lowest_B = np.empty(len(weights_BR))
    for number, weights_R in enumerate(weights_BR):
        show(f"checking resample {number + 1} of {len(weights_BR)} from all {len(fitter.grid_PC):,} starts ...")
        lowest_B[number] = _lowest_of_grid(fitter, weights_R)
    values_B = values_B[: len(weights_BR)]
    excess_B = (values_B - lowest_B) / np.maximum(lowest_B, _EXACT)
    agreed = int((values_B <= lowest_B * (1 + _SAME) + _EXACT).sum())
    return GridCheck(resamples=len(weights_BR), agreed=agreed, largest_excess=max(0.0, float(excess_B.max())))


def _lowest_of_grid(fitter: _Fitter, weights_R: Floats) -> float:
    quick = fitter.minima(fitter.grid_PC, lambda part: weights_R[None], quick=True)
    ends_PC = quick.points[np.argsort(quick.values, kind="stable")[:_POLISHED]]
    return float(fitter.minima(ends_PC, lambda part: weights_R[None]).values.min())


def _constants(printed_PC: Floats) -> list[tuple[float, ...]]:
    """(E, A, B, alpha, beta) of points as printed."""
    logs = np.exp(np.clip(printed_PC[:, [2, 0, 1]], -_LARGEST_LOG, _LARGEST_LOG))
    return [tuple(map(float, row)) for row in np.concatenate([logs, printed_PC[:, 3:]], axis=1)]


def _at_bound(printed_PC: Floats, fitter: _Fitter) -> Flags:
    near_lower = printed_PC <= fitter.lower_C + _AT_BOUND
    near_upper = printed_PC >= fitter.upper_C - _AT_BOUND
    return near_lower | near_upper
