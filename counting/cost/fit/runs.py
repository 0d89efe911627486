"""Training runs that a law is fitted to, and what they must be for a fit to mean something."""

from collections.abc import Sequence
from math import inf

import msgspec

from counting.cost.fit.shown import shown_flops
from torch_models.errors import UserError

FEWEST_RUNS = 8  # more than the five constants, so that residuals say something
FEWEST_DIFFERENT = 3  # N, and D: E, a coefficient and an exponent are three
ONE_BUDGET = 1.1  # largest C / smallest C of runs that count as one budget: whole steps never give C exactly


class TrainedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One finished run: N, D, C and its final loss in nats (or any unit: the law is in the same)."""

    line: int  # of the file, to name it in errors; of runs without a file, their number
    parameters: float
    tokens: float
    training_flops: float
    loss: float


def check_runs(runs: Sequence[TrainedRun]) -> None:
    """Raises UserError for numbers that are not positive, duplicates, one budget only, and too few runs or sizes."""
    seen: dict[tuple[float, ...], int] = {}
    for run in runs:
        numbers = {
            "parameters": run.parameters,
            "tokens": run.tokens,
            "training_flops": run.training_flops,
            "loss": run.loss,
        }
        for name, value in numbers.items():
            if not 0 < value < inf:
                raise UserError(f"line {run.line}: {name} = {value:g}: must be a number above 0")
        first = seen.setdefault(tuple(numbers.values()), run.line)
        if first != run.line:
            raise UserError(
                f"line {run.line}: repeats line {first}, number for number: give each run once; two runs of one size "
                "have two losses"
            )
    if len(runs) < FEWEST_RUNS:
        given = "1 run is" if len(runs) == 1 else f"{len(runs)} runs are"
        raise UserError(f"{given} too few: five constants and their residuals need at least {FEWEST_RUNS}")
    if len({run.loss for run in runs}) == 1:
        raise UserError(f"all {len(runs)} runs have the same loss, {runs[0].loss:g}: nothing in it depends on N or D")
    budgets = [run.training_flops for run in runs]
    if max(budgets) <= ONE_BUDGET * min(budgets):
        raise UserError(
            f"all {len(runs)} runs are of one budget, {shown_flops(max(budgets))}: more parameters are always fewer "
            "tokens there, so nothing tells their effects apart: give runs of at least two budgets, better five"
        )
    for name, values in (
        ("model sizes", {run.parameters for run in runs}),
        ("numbers of tokens", {run.tokens for run in runs}),
    ):
        if len(values) < FEWEST_DIFFERENT:
            listed = " and ".join(f"{value:.4g}" for value in sorted(values))
            raise UserError(
                f"the runs have {len(values)} different {name} ({listed}): a coefficient, an exponent and the "
                f"irreducible loss need at least {FEWEST_DIFFERENT}"
            )
