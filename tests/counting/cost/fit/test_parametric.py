"""Approach 3: constants that are known come back, intervals hold them, and the few starts miss nothing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from counting.cost.fit import TrainedRun, parametric, work
from counting.cost.fit.minimiser import Minima
from counting.cost.fit.parametric import GRID, ParametricFit, fit_parametric
from tests.counting.cost.fit.known_law import FEW_STARTS, TRUE, runs_of


@pytest.fixture
def few_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parametric, "GRID", FEW_STARTS)


def fit(runs: Sequence[TrainedRun], *, resamples: int = 100, **changed: Any) -> ParametricFit:
    columns = ([getattr(run, name) for run in runs] for name in ("parameters", "tokens", "loss"))
    return fit_parametric(
        *columns, **{"resamples": resamples, "seed": 0, "check": False, "show": lambda text: None} | changed
    )


def test_the_grid_is_that_of_the_paper() -> None:
    """Hoffmann et al. 2022, appendix D.2: 6 a, 6 b, 5 e, 5 alpha and 5 beta; 6 x 6 x 5 x 5 x 5 = 4,500 starts."""
    assert [list(map(float, each)) for each in GRID] == [
        [0, 5, 10, 15, 20, 25],
        [0, 5, 10, 15, 20, 25],
        [-1, -0.5, 0, 0.5, 1],
        [0, 0.5, 1, 1.5, 2],
        [0, 0.5, 1, 1.5, 2],
    ]
    found = fit(runs_of())
    assert found.starts == 4500
    assert found.at_best > 100


@pytest.mark.usefixtures("few_starts")
def test_constants_of_runs_without_noise_come_back() -> None:
    for constants in (TRUE, (1.8172, 482.01, 2085.43, 0.3478, 0.3658), (0.6, 20.0, 90.0, 0.2, 0.25)):
        found = fit(runs_of(constants))
        assert found.constants == pytest.approx(constants, rel=2e-3)
        assert found.objective < 1e-9
        assert np.array(found.draws) == pytest.approx(np.tile(constants, (100, 1)), rel=2e-2)


@pytest.mark.usefixtures("few_starts")
def test_one_run_that_diverged_moves_little() -> None:
    """Beyond delta a residual counts linearly: at a loss of 1.5 times its own, a run pulls as it does at 1.01 times."""
    runs = runs_of(noise=0.002)
    others = [run for run in runs if run is not runs[7]]
    far, near = (
        fit(
            [
                *others,
                TrainedRun(
                    **{**{f: getattr(runs[7], f) for f in runs[7].__struct_fields__}, "loss": times * runs[7].loss}
                ),
            ]
        )
        for times in (1.5, 1.01)
    )
    assert far.constants == pytest.approx(near.constants, rel=1e-3)
    assert far.objective > near.objective


@pytest.mark.usefixtures("few_starts")
def test_the_same_seed_gives_the_same_draws_on_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = runs_of(noise=0.005)
    monkeypatch.setattr(parametric, "_NUMBERS", 24 * 40)  # several parts
    monkeypatch.setattr(work, "cores_here", lambda: 1)
    first = fit(runs)
    monkeypatch.setattr(work, "cores_here", lambda: 3)
    assert fit(runs) == first
    assert fit(runs, seed=1).draws != first.draws
    assert fit(runs, seed=1).constants == first.constants


@pytest.mark.usefixtures("few_starts")
def test_draws_are_fits_of_resampled_runs() -> None:
    """The first resample, fitted as runs of its own, each as often as it was drawn."""
    runs = runs_of(noise=0.005)
    found = fit(runs)
    counts = np.random.default_rng(0).multinomial(len(runs), np.full(len(runs), 1 / len(runs)), size=100)[0]
    assert counts.sum() == len(runs)
    drawn = [run for run, count in zip(runs, counts, strict=True) for _ in range(count)]
    assert fit(drawn).constants == pytest.approx(found.draws[0], rel=1e-4)


def test_the_check_finds_a_minimum_that_the_starts_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start with a steep exponent ends where its term vanishes; resamples that begin there stay there."""
    runs = runs_of(noise=0.005)
    assert parametric.CHECKED_RESAMPLES == 20
    monkeypatch.setattr(parametric, "CHECKED_RESAMPLES", 3)
    monkeypatch.setattr(parametric, "GRID", ((5,), (5,), (0.5,), (0.5,), (0.5, 2.0)))
    found = fit(runs, check=True).check
    assert found is not None
    assert (found.resamples, found.agreed) == (3, 3)
    assert found.largest_excess < 1e-6
    monkeypatch.setattr(parametric, "_different", lambda minima: [int(np.argmax(minima.values))])
    missed = fit(runs, check=True).check
    assert missed is not None
    assert missed.agreed == 0
    assert missed.largest_excess > 0.1


@pytest.mark.usefixtures("few_starts")
def test_constants_at_a_bound_are_told() -> None:
    """Losses that would fall below 0: E becomes as small as it may."""
    found = fit(runs_of((-0.3, 20.0, 90.0, 0.1, 0.12)))
    assert found.at_bound == (True, False, False, False, False)
    assert found.draws_at_bound > 90
    assert not any(fit(runs_of(noise=0.005)).at_bound)


@pytest.mark.usefixtures("few_starts")
def test_progress_says_what_is_done() -> None:
    said: list[str] = []
    fit(runs_of(noise=0.005), show=said.append)
    assert said[0] == "fitting 24 runs from 16 starts ..."
    assert said[1].startswith("fitting 100 resamples from minimum 1 of ")


def test_resamples_start_from_the_five_best_minima_that_differ() -> None:
    """The lowest is there twice, but for rounding, and so is one of the others."""
    values = np.array([7.0, 2.0, 3.0, 1.0, 1.0 * (1 + 1e-12), 5.0, 4.0, 3.0, 6.0])
    minima = Minima(points=np.zeros((9, 5)), values=values, converged=np.ones(9, dtype=bool))
    assert [values[number] for number in parametric._different(minima)] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_draw_is_the_best_from_all_minima(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the minima comes first: the worst of the grid, and its best."""
    runs = runs_of(noise=0.005)
    monkeypatch.setattr(parametric, "GRID", ((5,), (5,), (0.5,), (0.5,), (0.5, 2.0)))
    best = fit(runs).draws
    monkeypatch.setattr(parametric, "_different", lambda minima: list(np.argsort(-minima.values)))
    assert fit(runs).draws == best
