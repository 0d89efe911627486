"""How often intervals of fits to runs of a known law hold what is true."""

import numpy as np

from counting.cost.fit import fit_law
from counting.cost.scaling_laws.law import CONSTANTS, loss_of_constants
from counting.cost.scaling_laws.optimum import log_optimum
from tests.counting.cost.fit.known_law import TRUE, runs_of

NOISE = 0.004  # standard deviation of the logarithm of a loss
BUDGETS = tuple(10.0**power for power in np.arange(18, 21.5, 0.5))
ANSWERED = 1e22  # FLOPs, ten times the largest budget


def share_held(repetitions: int, resamples: int) -> dict[str, float]:
    """The share of the repetitions, each of 63 runs with other noise, whose interval holds the true value.

    Of each constant, of N and D of the optimum at ten times the largest budget, and of the loss of the N and D that the
    fitted law chooses there.
    """
    log_n, log_d = log_optimum(TRUE, ANSWERED)
    held = dict.fromkeys((*CONSTANTS, "N", "D", "loss"), 0)
    for seed in range(repetitions):
        runs = runs_of(noise=NOISE, budgets=BUDGETS, sizes=9, seed=seed)
        fitted = fit_law(runs, resamples=resamples, seed=seed, training_flops=[ANSWERED], check=False)
        at = fitted.optima[0].parametric
        assert at is not None
        true_loss = loss_of_constants(TRUE, at.parameters.value, at.tokens.value)
        found = [getattr(fitted.law, name) for name in CONSTANTS] + [at.parameters, at.tokens, at.loss]
        true = (*TRUE, float(np.exp(log_n)), float(np.exp(log_d)), true_loss)
        for name, constant, value in zip(held, found, true, strict=True):
            held[name] += constant.low <= value <= constant.high
    return {name: number / repetitions for name, number in held.items()}
