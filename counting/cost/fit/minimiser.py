"""BFGS from many starts at once, in a box, in numpy: L-BFGS that keeps its whole history, as a 5 x 5 matrix.

Quasi-Newton steps with a line search by bisection for the weak Wolfe conditions (Lewis and Overton 2013, "Nonsmooth
optimization via quasi-Newton methods", Mathematical Programming 141), which also ends where an objective has kinks, as
Huber's nearly has with a small delta. A coordinate at its bound whose gradient points outwards is held there (Bertsekas
1982, "Projected Newton methods", SIAM Journal on Control and Optimization 20).

Shape suffixes: P points that still move, S all starts, C coordinates.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from counting.cost.fit.arrays import Flags, Floats, Places

Objective = Callable[
    [Floats, Places], tuple[Floats, Floats]
]  # (points, the numbers of their starts) -> values, gradients

_DECREASE, _CURVATURE = 1e-4, 0.9  # of the weak Wolfe conditions
_MOST_ROUNDS = 2000  # evaluations of one start
_FEW_GAINS = 3  # steps in a row that gain less than `gain`
_SHORTEST_STEP = 1e-14
_LONGEST_FIRST_STEP = 1.0
_CURVED = 1e-12  # cosine between a step and the change of the gradient, below which nothing is learnt of curvature


class Minima(NamedTuple):
    """Where the starts ended, in their order; `converged` where that is a minimum within the tolerances."""

    points: Floats
    values: Floats
    converged: Flags


@dataclass
class _Walk:
    """The points that still move."""

    number_P: Places  # of their starts
    point_PC: Floats
    value_P: Floats
    gradient_PC: Floats
    free_PC: Flags  # coordinates that are not held at a bound
    inverse_PCC: Floats  # of the Hessian, as learnt so far
    fresh_P: Flags  # nothing is learnt yet
    direction_PC: Floats
    fall_P: Floats  # the slope along the direction
    step_P: Floats  # tried next, and the bracket around those that are good
    low_P: Floats
    high_P: Floats
    idle_P: Places  # steps in a row that gained little

    def keep(self, kept_P: Flags) -> None:
        """Drop the other points."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[kept_P])


def minimise(
    objective: Objective,
    starts_SC: Floats,
    lower_C: Floats,
    upper_C: Floats,
    *,
    slope: float = 1e-7,
    gain: float = 1e-12,
) -> Minima:
    """Minimise from every start.

    A start ends when no free coordinate's gradient is above `slope`, or when three steps in a row gain less than `gain`
    of the value.
    """
    walk = _begun(objective, np.clip(starts_SC, lower_C, upper_C), lower_C, upper_C)
    ended = Minima(walk.point_PC.copy(), walk.value_P.copy(), np.zeros(len(starts_SC), dtype=np.bool_))
    for _ in range(_MOST_ROUNDS):
        far_PC = walk.point_PC + walk.step_P[:, None] * walk.direction_PC
        trial_PC = np.clip(far_PC, lower_C, upper_C)
        value_P, gradient_PC = objective(trial_PC, walk.number_P)
        lower_P = value_P <= walk.value_P + _DECREASE * walk.step_P * walk.fall_P
        flat_P = (gradient_PC * walk.direction_PC).sum(axis=1) >= _CURVATURE * walk.fall_P
        flat_P |= (trial_PC != far_PC).any(axis=1)  # a step that the box cut goes no further, however steep it is there
        good_P = np.zeros(len(trial_PC), dtype=np.bool_)
        taken = np.flatnonzero(lower_P & flat_P)
        if len(taken):
            _take(walk, taken, trial_PC[taken], value_P[taken], gradient_PC[taken], gain)
            _turn(walk, taken, lower_C, upper_C)
            steepest_P = np.abs(walk.gradient_PC[taken] * walk.free_PC[taken]).max(axis=1)
            good_P[taken] = (steepest_P < slope) | (walk.idle_P[taken] >= _FEW_GAINS)
        _bisect(walk, ~(lower_P & flat_P), lower_P)
        finished_P = good_P | (walk.high_P - walk.low_P < _SHORTEST_STEP)
        if finished_P.any():
            of = walk.number_P[finished_P]
            ended.points[of], ended.values[of] = walk.point_PC[finished_P], walk.value_P[finished_P]
            ended.converged[of] = good_P[finished_P]
            walk.keep(~finished_P)
            if not len(walk.number_P):
                break
    ended.points[walk.number_P], ended.values[walk.number_P] = walk.point_PC, walk.value_P
    return ended


def _begun(objective: Objective, point_PC: Floats, lower_C: Floats, upper_C: Floats) -> _Walk:
    """All starts, about to take a step of steepest descent, at most `_LONGEST_FIRST_STEP` long."""
    points, coordinates = point_PC.shape
    number_P = np.arange(points)
    value_P, gradient_PC = objective(point_PC, number_P)
    free_PC = _free(point_PC, gradient_PC, lower_C, upper_C)
    direction_PC = -gradient_PC * free_PC
    length_P = np.sqrt((direction_PC * direction_PC).sum(axis=1))
    direction_PC /= np.maximum(1.0, length_P / _LONGEST_FIRST_STEP)[:, None]
    return _Walk(
        number_P=number_P,
        point_PC=point_PC,
        value_P=value_P,
        gradient_PC=gradient_PC,
        free_PC=free_PC,
        inverse_PCC=np.tile(np.eye(coordinates), (points, 1, 1)),
        fresh_P=np.ones(points, dtype=np.bool_),
        direction_PC=direction_PC,
        fall_P=(direction_PC * gradient_PC).sum(axis=1),
        step_P=np.ones(points),
        low_P=np.zeros(points),
        high_P=np.full(points, np.inf),
        idle_P=np.zeros(points, dtype=np.intp),
    )


def _free(point_PC: Floats, gradient_PC: Floats, lower_C: Floats, upper_C: Floats) -> Flags:
    """False where a coordinate is at a bound and would leave the box."""
    held: Flags = ((point_PC <= lower_C) & (gradient_PC > 0)) | ((point_PC >= upper_C) & (gradient_PC < 0))
    return ~held


def _take(walk: _Walk, taken: Places, trial_PC: Floats, value_P: Floats, gradient_PC: Floats, gain: float) -> None:
    """Move the points `taken` to their trials, and learn of the curvature on the way."""
    moved_PC = trial_PC - walk.point_PC[taken]
    turned_PC = (gradient_PC - walk.gradient_PC[taken]) * walk.free_PC[taken]
    walk.inverse_PCC[taken] = _updated(walk.inverse_PCC[taken], moved_PC, turned_PC, walk.fresh_P[taken])
    little_P = walk.value_P[taken] - value_P <= gain * np.abs(value_P)
    walk.idle_P[taken] = np.where(little_P, walk.idle_P[taken] + 1, 0)
    walk.point_PC[taken], walk.value_P[taken], walk.gradient_PC[taken] = trial_PC, value_P, gradient_PC


def _turn(walk: _Walk, taken: Places, lower_C: Floats, upper_C: Floats) -> None:
    """New directions in the free coordinates: quasi-Newton, or steepest descent where that does not lead down."""
    before_PC, gradient_PC = walk.free_PC[taken], walk.gradient_PC[taken]
    free_PC = _free(walk.point_PC[taken], gradient_PC, lower_C, upper_C)
    # What was learnt is of other coordinates, if one is held or let go now.
    walk.fresh_P[taken] = (free_PC != before_PC).any(axis=1)
    reduced_PC = gradient_PC * free_PC
    direction_PC = -np.einsum("pij,pj->pi", walk.inverse_PCC[taken], reduced_PC) * free_PC
    fall_P = (direction_PC * reduced_PC).sum(axis=1)
    up_P = ~(fall_P < 0)
    direction_PC[up_P] = -reduced_PC[up_P]
    fall_P[up_P] = -(reduced_PC[up_P] ** 2).sum(axis=1)
    walk.free_PC[taken], walk.direction_PC[taken], walk.fall_P[taken] = free_PC, direction_PC, fall_P
    walk.step_P[taken], walk.low_P[taken], walk.high_P[taken] = 1.0, 0.0, np.inf


def _bisect(walk: _Walk, refused_P: Flags, lower_P: Flags) -> None:
    """The next step of the points whose step was refused: shorter if the value is not lower enough, else longer."""
    walk.high_P = np.where(refused_P & ~lower_P, walk.step_P, walk.high_P)
    walk.low_P = np.where(refused_P & lower_P, walk.step_P, walk.low_P)
    middle_P = np.where(np.isinf(walk.high_P), 2 * walk.step_P, 0.5 * (walk.low_P + walk.high_P))
    walk.step_P = np.where(refused_P, middle_P, walk.step_P)


def _updated(inverse_PCC: Floats, moved_PC: Floats, turned_PC: Floats, fresh_P: Flags) -> Floats:
    """The BFGS update of the inverse Hessian (Nocedal and Wright 2006, eq. 6.17, and 6.20 before the first one)."""
    product_P = (moved_PC * turned_PC).sum(axis=1)
    turned_2_P = (turned_PC * turned_PC).sum(axis=1)
    curved_P = product_P > _CURVED * np.sqrt((moved_PC * moved_PC).sum(axis=1) * turned_2_P)
    safe_P = np.where(curved_P, product_P, 1.0)
    first_P = fresh_P & curved_P
    scale_P = safe_P / np.where(curved_P, turned_2_P, 1.0)
    inverse_PCC[first_P] = scale_P[first_P, None, None] * np.eye(moved_PC.shape[1])
    rho_P = 1 / safe_P
    applied_PC = np.einsum("pij,pj->pi", inverse_PCC, turned_PC)
    crossed_PCC = moved_PC[:, :, None] * applied_PC[:, None, :]
    factor_P = rho_P * (1 + rho_P * (turned_PC * applied_PC).sum(axis=1))
    updated_PCC = (
        inverse_PCC
        - rho_P[:, None, None] * (crossed_PCC + crossed_PCC.transpose(0, 2, 1))
        + factor_P[:, None, None] * (moved_PC[:, :, None] * moved_PC[:, None, :])
    )
    return np.where(curved_P[:, None, None], updated_PCC, inverse_PCC)
