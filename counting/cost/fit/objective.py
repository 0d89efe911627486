"""What a fit makes small: the Huber loss of the logarithms of predicted and measured losses, with its gradient.

Hoffmann et al. 2022 (arXiv 2203.15556, §3.3, eq. 3), with a = log A, b = log B and e = log E:

    f(a, b, e, alpha, beta) = sum over runs of Huber_delta(r),   delta = 1e-3
    r = log-sum-exp(a - alpha log N, b - beta log D, e) - log L

A point is a row of (a, b, e, alpha, beta). Points here are *centred*: a is in fact a - alpha mean(log N), and b
likewise, which changes no prediction. Otherwise a change of alpha needs twenty times that change of a to keep the
prediction where the runs are, and a minimiser goes slowly along such valleys.

Shape suffixes: P points, R runs, C the five constants.
"""

import numpy as np

from counting.cost.fit.arrays import Floats

HUBER_DELTA = 1e-3  # of the logarithm of the loss, Hoffmann et al. 2022, §3.3: beyond it, a residual counts linearly


class HuberObjective:
    """The objective of one set of runs, at many points at once, each with weights of its own if there are weights."""

    def __init__(self, parameters: Floats, tokens: Floats, losses: Floats) -> None:
        log_n, log_d = np.log(parameters), np.log(tokens)
        self.runs = len(losses)
        self._mean_n, self._mean_d = float(log_n.mean()), float(log_d.mean())
        self._n_R, self._d_R = log_n - self._mean_n, log_d - self._mean_d
        self._loss_R = np.log(losses)

    def centred(self, points_PC: Floats) -> Floats:
        """Points as they are printed, (log A, log B, log E, alpha, beta), into centred ones."""
        return self._moved(points_PC, -1.0)

    def printed(self, points_PC: Floats) -> Floats:
        """Centred points as (log A, log B, log E, alpha, beta)."""
        return self._moved(points_PC, 1.0)

    def _moved(self, points_PC: Floats, sign: float) -> Floats:
        moved = points_PC.copy()
        moved[:, 0] += sign * self._mean_n * points_PC[:, 3]
        moved[:, 1] += sign * self._mean_d * points_PC[:, 4]
        return moved

    def residuals(self, point_C: Floats) -> Floats:
        """r of each run at one centred point."""
        a, b, e, alpha, beta = point_C
        of_n_R, of_d_R = np.exp(a - alpha * self._n_R), np.exp(b - beta * self._d_R)
        residuals_R: Floats = np.log(of_n_R + of_d_R + np.exp(e)) - self._loss_R
        return residuals_R

    def __call__(self, points_PC: Floats, weights_PR: Floats | None = None) -> tuple[Floats, Floats]:
        """f and its gradient at centred points, both divided by delta x runs, so that f is near the mean of |r|.

        `weights_PR` says how often each run counts: how often a resample drew it. Without it, each counts once. The sum
        of exponentials needs no shift by the largest: e is bounded, so it is never 0; if it is infinite, as it may be
        far out on a line of search, f is not a number, and the minimiser steps back.
        """
        a, b, e, alpha, beta = (points_PC[:, index, None] for index in range(5))
        of_n_PR = np.exp(a - alpha * self._n_R)
        of_d_PR = np.exp(b - beta * self._d_R)
        sum_PR = of_n_PR + of_d_PR
        sum_PR += np.exp(e)
        residual_PR = np.log(sum_PR)
        residual_PR -= self._loss_R
        slope_PR = np.clip(residual_PR, -HUBER_DELTA, HUBER_DELTA)  # Huber's derivative
        # Huber: r^2 / 2 within delta, else delta (|r| - delta / 2): both are slope (r - slope / 2).
        residual_PR -= 0.5 * slope_PR
        if weights_PR is not None:
            slope_PR *= weights_PR
        value_P = np.einsum("pr,pr->p", slope_PR, residual_PR)
        all_P = slope_PR.sum(axis=1)
        slope_PR /= sum_PR
        of_n_PR *= slope_PR
        of_d_PR *= slope_PR
        by_a_P, by_b_P = of_n_PR.sum(axis=1), of_d_PR.sum(axis=1)
        # einsum, not a product of matrices: its sums do not depend on the number of threads of a BLAS.
        by_alpha_P = -np.einsum("pr,r->p", of_n_PR, self._n_R)
        by_beta_P = -np.einsum("pr,r->p", of_d_PR, self._d_R)
        gradient_PC = np.stack([by_a_P, by_b_P, all_P - by_a_P - by_b_P, by_alpha_P, by_beta_P], axis=1)
        scale = 1 / (HUBER_DELTA * self.runs)
        return value_P * scale, gradient_PC * scale
