"""What a fit returns: the law, the runs with their residuals, both approaches side by side, and what is doubtful."""

import msgspec

from counting.cost.scaling_laws import Constant, ScalingLaw
from counting.records.tidy import Tidy


class FittedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One training run, and what the fitted law says of it."""

    line: int  # of the file, from 1; of runs without a file, their number
    parameters: float
    tokens: float
    training_flops: float
    loss: float
    predicted_loss: float
    residual: float  # log(loss) - log(predicted loss): above 0, the run is worse than predicted


class PowerLaw(msgspec.Struct, frozen=True, kw_only=True):
    """coefficient x C ^ exponent, with C training FLOPs."""

    coefficient: Constant
    exponent: Constant


class IsoflopBudget(msgspec.Struct, frozen=True, kw_only=True):
    """The runs of one compute budget, and the parabola through their losses."""

    training_flops: float  # the geometric mean of its runs
    lines: tuple[int, ...]  # of its runs
    # (c0, c1, c2) of loss = c0 + c1 x + c2 x^2 with x = log N; None where a parabola is not determined
    parabola: tuple[float, float, float] | None
    # At its minimum. None where the budget is left out.
    parameters: float | None
    tokens: float | None
    loss: float | None
    left_out: str | None  # why it is not used


class IsoflopFit(msgspec.Struct, frozen=True, kw_only=True):
    """Approach 2 of Hoffmann et al. 2022: the best N and D of each budget, and power laws through them."""

    budgets: tuple[IsoflopBudget, ...]
    parameters_power: PowerLaw
    tokens_power: PowerLaw
    # (coefficient, exponent) of N and of D in each resample that determines them
    bootstrap: tuple[tuple[float, float, float, float], ...]


class ApproachOptimum(msgspec.Struct, frozen=True, kw_only=True):
    """The best N and D for a budget by one approach, with 95 % intervals."""

    parameters: Constant
    tokens: Constant
    tokens_per_parameter: Constant
    loss: Constant | None  # None: power laws of N and D say no loss


class FittedOptimum(msgspec.Struct, frozen=True, kw_only=True):
    """The best N and D for a budget by both approaches."""

    training_flops: float  # as the file counts them
    chosen: str  # why this budget: given, or the largest of the runs
    parametric: ApproachOptimum | None  # None where the law's optimum has no parameter or no token
    left_out: str | None  # why it is None
    isoflop: ApproachOptimum | None
    beyond_parameters: float  # orders of magnitude of N beyond the runs' range, by the parametric law; 0 within
    beyond_tokens: float


class GridCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Resamples that were also fitted from every start of the grid: whether the few starts miss a better minimum."""

    resamples: int
    agreed: int  # of these, how many have the lowest objective of the grid, but for rounding
    largest_excess: float  # of the objective from the few starts over that of the grid, relative


class FittedLaw(Tidy, frozen=True, kw_only=True):
    """A scaling law fitted to training runs."""

    law: ScalingLaw  # approach 3, as the file has it
    runs: tuple[FittedRun, ...]
    flops_per_parameter_and_token: float  # C / N D of the runs, the median: 6 where one of the three was not given
    derived: str | None  # which of N, D and C follows from the other two by C = 6 N D; None if all were given
    columns: dict[str, str]  # what a number is -> the column of the file
    objective: float  # the sum of Huber losses at the minimum
    starts: int  # of the grid
    at_best: int  # starts of the grid that end at the best minimum
    minima: int  # different ones that resamples start from
    resamples: int
    undecided_terms: tuple[str, ...]  # parameters, tokens: what the runs are described as well without
    resamples_at_bound: int  # of these, fits with a constant at a bound
    seed: int
    check: GridCheck | None
    parameters_power: PowerLaw  # of the optimum under the law: N = coefficient x C ^ exponent
    tokens_power: PowerLaw
    isoflop: IsoflopFit | None
    isoflop_left_out: str | None  # why there is no approach 2
    optima: tuple[FittedOptimum, ...]
    median_residual: float  # of the absolute values
    warnings: tuple[str, ...]
