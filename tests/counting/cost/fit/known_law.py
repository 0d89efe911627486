"""Runs of a law that is known, on budgets that repeat, with noise or without."""

from collections.abc import Sequence

import numpy as np

from counting.cost.fit import TrainedRun

TRUE = (1.69, 406.4, 410.7, 0.34, 0.28)  # E, A, B, alpha, beta: Hoffmann et al. 2022, eq. 10
FEW_STARTS = ((5, 20), (5, 20), (0.5,), (0.5, 1.0), (0.5, 1.0))  # of a grid that is quick


def runs_of(
    constants: Sequence[float] = TRUE,
    *,
    budgets: Sequence[float] = (1e18, 1e19, 1e20, 1e21),
    sizes: int = 6,
    noise: float = 0.0,
    seed: int = 0,
) -> list[TrainedRun]:
    """`sizes` models around N = 0.1 sqrt(C) for each C of `budgets`; log losses have normal noise."""
    irreducible, of_n, of_d, alpha, beta = constants
    random = np.random.default_rng(seed)
    runs: list[TrainedRun] = []
    for flops in budgets:
        for share in np.logspace(-0.5, 0.5, sizes):
            parameters = float(0.1 * flops**0.5 * share)
            tokens = flops / (6 * parameters)
            loss = (irreducible + of_n / parameters**alpha + of_d / tokens**beta) * np.exp(noise * random.normal())
            run = TrainedRun(
                line=len(runs) + 2, parameters=parameters, tokens=tokens, training_flops=flops, loss=float(loss)
            )
            runs.append(run)
    return runs


def as_csv(runs: Sequence[TrainedRun], header: str = "parameters,tokens,loss") -> str:
    """The file of the runs, with N, D and loss."""
    return "\n".join([header, *(f"{run.parameters!r},{run.tokens!r},{run.loss!r}" for run in runs)]) + "\n"
