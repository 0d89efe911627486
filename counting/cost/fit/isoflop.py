"""Approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556, §3.2): IsoFLOP parabolas, then power laws through their minima.

Runs of one compute budget C with models of several sizes: the loss is fitted as a parabola in log N, whose minimum is
the best N for C; and as one in log D, for the best D. Straight lines through log N_opt and log D_opt over log C give
N_opt = k C^a and D_opt = k' C^b.

The bootstrap draws runs with replacement within each budget, so that every budget stays. A budget whose drawn runs
determine no minimum is left out of that resample.

Shape suffixes: B resamples, R runs of a budget, G budgets.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from counting.cost.fit.arrays import Floats
from counting.cost.fit.budgets import FEWEST_BUDGETS, FEWEST_SIZES
from counting.cost.fit.result import IsoflopBudget
from counting.cost.fit.runs import TrainedRun

_LARGEST_LOG = 700.0  # e^700 is still a float
_SEED_OF_ISOFLOPS = 1  # other draws than those of the parametric law, of the same seed


class Parabolas(NamedTuple):
    """Parabolas of the same runs with different weights, in x less its mean."""

    mean: float
    constants_B3: Floats  # of c0 + c1 (x - mean) + c2 (x - mean)^2
    minimum_B: Floats  # x; not a number where there is none among the runs
    loss_B: Floats  # there


class PowerLaws(NamedTuple):
    """(coefficient, exponent) of N and of D, the fit and its resamples."""

    fitted: tuple[float, float, float, float]
    draws: tuple[tuple[float, float, float, float], ...]


def fit_isoflops(
    groups: Sequence[Sequence[TrainedRun]], *, resamples: int, seed: int
) -> tuple[tuple[IsoflopBudget, ...], PowerLaws | None]:
    """The parabola of each budget, and the power laws, None if fewer than `FEWEST_BUDGETS` have a minimum."""
    random = np.random.default_rng([seed, _SEED_OF_ISOFLOPS])
    budgets: list[IsoflopBudget] = []
    flops: list[float] = []
    minima: list[tuple[Floats, Floats]] = []  # log N and log D of each usable budget, the fit and then its resamples
    for runs in groups:
        losses = np.array([run.loss for run in runs])
        counts = random.multinomial(len(runs), np.full(len(runs), 1 / len(runs)), size=resamples)
        weights = np.concatenate([np.ones((1, len(runs))), counts.astype(np.float64)])
        by_size = parabolas(np.log([run.parameters for run in runs]), losses, weights)
        by_tokens = parabolas(np.log([run.tokens for run in runs]), losses, weights)
        budget = _budget(runs, by_size, by_tokens)
        budgets.append(budget)
        if budget.left_out is None:
            flops.append(budget.training_flops)
            minima.append((by_size.minimum_B, by_tokens.minimum_B))
    if len(flops) < FEWEST_BUDGETS:
        return tuple(budgets), None
    x_G = np.log(flops)
    lines = [_lines(x_G, np.stack([of[which] for of in minima], axis=1)) for which in (0, 1)]
    laws_B4 = np.concatenate(lines, axis=1)
    draws = [_power_laws(row) for row in laws_B4[1:] if np.isfinite(row).all()]
    return tuple(budgets), PowerLaws(fitted=_power_laws(laws_B4[0]), draws=tuple(draws))


def parabolas(x_R: Floats, y_R: Floats, weights_BR: Floats) -> Parabolas:
    """Least squares of y = c0 + c1 (x - mean) + c2 (x - mean)^2 under each row of weights, and the minimum.

    There is a minimum at x = mean - c1 / 2 c2 if c2 > 0 and it lies among the runs that have a weight; these need
    `FEWEST_SIZES` different x.
    """
    mean = float(x_R.mean())
    centred_R = x_R - mean
    powers_R3 = np.stack([np.ones_like(centred_R), centred_R, centred_R**2], axis=1)
    matrix = np.einsum("br,ri,rj->bij", weights_BR, powers_R3, powers_R3)
    vector = np.einsum("br,ri,r->bi", weights_BR, powers_R3, y_R)
    sizes = [len(set(x_R[row > 0])) for row in weights_BR]
    solvable = np.array(sizes) >= FEWEST_SIZES
    matrix[~solvable] = np.eye(3)
    constants = np.linalg.solve(matrix, vector[:, :, None])[:, :, 0]
    low = np.where(weights_BR > 0, centred_R, np.inf).min(axis=1)
    high = np.where(weights_BR > 0, centred_R, -np.inf).max(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        lowest = -constants[:, 1] / (2 * constants[:, 2])
    found = solvable & (constants[:, 2] > 0) & (low < lowest) & (lowest < high)
    loss = constants[:, 0] + constants[:, 1] * lowest + constants[:, 2] * lowest**2
    constants[~solvable] = np.nan
    return Parabolas(mean, constants, np.where(found, lowest + mean, np.nan), np.where(found, loss, np.nan))


def _budget(runs: Sequence[TrainedRun], by_size: Parabolas, by_tokens: Parabolas) -> IsoflopBudget:
    """One budget as the first row of weights, all ones, fits it."""
    log_n, log_d = float(by_size.minimum_B[0]), float(by_tokens.minimum_B[0])
    left_out = _left_out(runs, by_size, by_tokens)
    c0, c1, c2 = map(float, by_size.constants_B3[0])
    mean = by_size.mean
    return IsoflopBudget(
        training_flops=float(np.exp(np.mean(np.log([run.training_flops for run in runs])))),
        lines=tuple(run.line for run in runs),
        parabola=(c0 - c1 * mean + c2 * mean**2, c1 - 2 * c2 * mean, c2) if np.isfinite(c2) else None,
        parameters=None if left_out else float(np.exp(log_n)),
        tokens=None if left_out else float(np.exp(log_d)),
        loss=None if left_out else float(by_size.loss_B[0]),
        left_out=left_out,
    )


def _left_out(runs: Sequence[TrainedRun], by_size: Parabolas, by_tokens: Parabolas) -> str | None:
    if np.isfinite(by_size.minimum_B[0]) and np.isfinite(by_tokens.minimum_B[0]):
        return None
    curvature = by_size.constants_B3[0, 2]
    for values in ({run.parameters for run in runs}, {run.tokens for run in runs}):
        if len(values) < FEWEST_SIZES:
            return f"{len(values)} different sizes, and a parabola needs {FEWEST_SIZES}"
    if not curvature > 0:
        return "the losses bend downwards, so that no size is the best"
    return "the lowest loss is at the smallest or the largest size, so that the best lies outside"


def _lines(x_G: Floats, y_BG: Floats) -> Floats:
    """(exp(intercept), slope) of the least-squares line of each row, through its points that are numbers.

    Not a number where fewer than two are.
    """
    there_BG = np.isfinite(y_BG)
    count_B = there_BG.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_x_B = (there_BG * x_G).sum(axis=1) / count_B
        mean_y_B = np.where(there_BG, y_BG, 0.0).sum(axis=1) / count_B
        from_x_BG = np.where(there_BG, x_G - mean_x_B[:, None], 0.0)
        from_y_BG = np.where(there_BG, y_BG - mean_y_B[:, None], 0.0)
        slope_B = (from_x_BG * from_y_BG).sum(axis=1) / (from_x_BG**2).sum(axis=1)
        return np.stack([np.exp(np.clip(mean_y_B - slope_B * mean_x_B, -_LARGEST_LOG, _LARGEST_LOG)), slope_B], axis=1)


def _power_laws(row: Floats) -> tuple[float, float, float, float]:
    of_n, exponent_n, of_d, exponent_d = map(float, row)
    return of_n, exponent_n, of_d, exponent_d
