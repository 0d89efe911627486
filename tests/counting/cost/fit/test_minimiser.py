"""The minimiser: known minima, bounds, kinks, and scipy's L-BFGS-B as another one."""

import numpy as np
import numpy.typing as npt
import pytest

from counting.cost.fit.minimiser import minimise
from counting.cost.fit.objective import HuberObjective
from tests.counting.cost.fit.known_law import runs_of

Array = npt.NDArray[np.float64]
FREE = np.full(2, -np.inf), np.full(2, np.inf)


def bowl(points: Array, numbers: npt.NDArray[np.intp]) -> tuple[Array, Array]:
    """(x - 1)^2 + 100 (y - x)^2, a narrow valley with its minimum 0 at (1, 1)."""
    x, y = points[:, 0], points[:, 1]
    return (x - 1) ** 2 + 100 * (y - x) ** 2, np.stack([2 * (x - 1) - 200 * (y - x), 200 * (y - x)], axis=1)


def test_every_start_ends_at_the_minimum() -> None:
    starts = np.random.default_rng(0).uniform(-50, 50, (40, 2))
    found = minimise(bowl, starts, *FREE)
    assert found.converged.all()
    assert found.points == pytest.approx(np.ones((40, 2)), abs=1e-6)
    assert found.values == pytest.approx(np.zeros(40), abs=1e-12)


def test_a_start_alone_ends_where_it_ends_among_others() -> None:
    starts = np.random.default_rng(1).uniform(-5, 5, (6, 2))
    together = minimise(bowl, starts, *FREE)
    alone = [minimise(bowl, start[None], *FREE).points[0] for start in starts]
    assert together.points.tolist() == np.array(alone).tolist()


def test_a_coordinate_is_held_at_its_bound() -> None:
    """With x >= 2, the best is x = 2 and y = 2: 1. With y <= 0, the best is y = 0: d/dx = 0 at x = 1 / 101."""
    starts = np.random.default_rng(2).uniform(-50, 50, (20, 2))
    found = minimise(bowl, starts, np.array([2, -np.inf]), np.full(2, np.inf))
    assert found.converged.all()
    assert found.points == pytest.approx(np.full((20, 2), 2.0), abs=1e-6)
    assert found.points[:, 0].min() == 2
    found = minimise(bowl, starts, np.full(2, -np.inf), np.array([np.inf, 0]))
    assert found.points == pytest.approx(np.tile([1 / 101, 0], (20, 1)), abs=1e-6)


def test_a_kink_is_no_obstacle() -> None:
    """|x - 1| + |y - x|: no gradient becomes small on the way to its minimum at (1, 1)."""

    def kinked(points: Array, numbers: npt.NDArray[np.intp]) -> tuple[Array, Array]:
        x, y = points[:, 0], points[:, 1]
        by_x, by_y = np.sign(x - 1), np.sign(y - x)
        return abs(x - 1) + abs(y - x), np.stack([by_x - by_y, by_y], axis=1)

    found = minimise(kinked, np.array([[30.3, -20.7], [-7.1, 2.2]]), *FREE)
    assert found.points == pytest.approx(np.ones((2, 2)), abs=1e-3)


def test_a_step_to_where_there_is_no_number_is_taken_back() -> None:
    def logarithm(points: Array, numbers: npt.NDArray[np.intp]) -> tuple[Array, Array]:
        with np.errstate(invalid="ignore"):
            return points[:, 0] - np.log(points[:, 0]), 1 - 1 / points

    with np.errstate(invalid="ignore"):
        found = minimise(logarithm, np.array([[0.2], [40.0]]), np.full(1, -np.inf), np.full(1, np.inf))
    assert found.points[:, 0] == pytest.approx([1, 1], abs=1e-5)


def test_numbers_of_starts_go_with_their_points() -> None:
    """Each start has an aim of its own, so that an objective may weigh each start differently."""
    aims = np.arange(8.0)

    def aimed(points: Array, numbers: npt.NDArray[np.intp]) -> tuple[Array, Array]:
        away = points[:, 0] - aims[numbers]
        return away**4 + away**2, (4 * away**3 + 2 * away)[:, None]

    found = minimise(aimed, np.zeros((8, 1)), np.full(1, -np.inf), np.full(1, np.inf))
    assert found.points[:, 0] == pytest.approx(aims, abs=1e-6)


def test_scipy_finds_no_lower_minimum() -> None:
    """L-BFGS-B of scipy, with the tolerances of a search to the end, from the same starts and a few more digits."""
    optimize = pytest.importorskip("scipy.optimize")
    runs = runs_of(noise=0.005)
    of = HuberObjective(*(np.array([getattr(run, name) for run in runs]) for name in ("parameters", "tokens", "loss")))
    starts = of.centred(np.array([[5.0, 5, 0.5, 0.3, 0.3], [10, 10, 0, 0.5, 0.5], [5, 10, 0.5, 0.5, 0.5]]))
    lower, upper = np.array([-np.inf, -np.inf, -5, 0.01, 0.01]), np.array([np.inf, np.inf, 2, 2.5, 2.5])
    found = minimise(lambda points, numbers: of(points), starts, lower, upper)
    for start, point, value in zip(starts, found.points, found.values, strict=True):
        theirs = optimize.minimize(
            lambda x: tuple(each[0] for each in of(x[None])),
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(lower, upper, strict=True)),
            options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 5000, "maxfun": 20000},
        )
        assert value <= theirs.fun * (1 + 1e-6)
        assert theirs.fun <= value * (1 + 1e-3)
        assert point == pytest.approx(theirs.x, rel=0.05)
