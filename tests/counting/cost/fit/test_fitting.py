"""A fit as a whole: what the result says, at which budgets, and what it doubts."""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from counting.cost.fit import FittedLaw, TrainedRun, fit_law, parametric
from counting.cost.fit.doubts import doubts_of_isoflops, doubts_of_law, doubts_of_search, orders_from_range
from counting.cost.fit.result import GridCheck
from counting.cost.fit_curves import fit_curves
from counting.cost.scaling_laws import compute_optimum, predicted_loss
from counting.cost.scaling_laws.law import CONSTANTS
from tests.counting.cost.fit.coverage import share_held
from tests.counting.cost.fit.known_law import FEW_STARTS, TRUE, runs_of
from torch_models.errors import ArgumentError

SEED = 2  # of noise whose fit holds everything: by design, one number in twenty is outside its interval
BUDGETS = (1e18, 1e19, 1e20, 1e21, 1e22)


@pytest.fixture(autouse=True)
def few_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parametric, "GRID", FEW_STARTS)


def fitted(runs: Sequence[TrainedRun], **changed: Any) -> FittedLaw:
    return fit_law(runs, **{"resamples": 100, "check": False} | changed)


def changed(run: TrainedRun, **fields: float) -> TrainedRun:
    return msgspec.structs.replace(run, **fields)


def test_law_of_noisy_runs() -> None:
    """40 runs of a known law: every constant's interval holds it, and so do those of N, D and the loss at a budget."""
    runs = runs_of(noise=0.003, budgets=BUDGETS, sizes=8, seed=SEED)
    found = fitted(runs, name="ours", source="runs of ours")
    law = found.law
    assert (law.name, law.source, law.runs) == ("ours", "runs of ours", 40)
    assert len(law.bootstrap) == 100
    assert law.fitted_parameters == (min(run.parameters for run in runs), max(run.parameters for run in runs))
    assert law.fitted_tokens == (min(run.tokens for run in runs), max(run.tokens for run in runs))
    draws = np.array(law.bootstrap)
    for index, (field, true) in enumerate(zip(CONSTANTS, TRUE, strict=True)):
        constant = getattr(law, field)
        assert constant.low <= true <= constant.high
        assert (constant.low, constant.high) == pytest.approx(np.percentile(draws[:, index], [2.5, 97.5]))
        assert constant.low < constant.value < constant.high
    assert [at.training_flops for at in found.optima] == [1e22, 1e23]
    assert [at.chosen for at in found.optima] == ["the largest of the runs", "10 times the largest"]
    true_law = fitted(runs_of(budgets=BUDGETS)).law
    for at in found.optima:
        best = compute_optimum(true_law, at.training_flops)
        chosen = at.parametric
        assert chosen is not None
        for constant, true in (
            (chosen.parameters, best.parameters),
            (chosen.tokens, best.tokens),
            (chosen.tokens_per_parameter, best.tokens / best.parameters),
            (chosen.loss, predicted_loss(true_law, chosen.parameters.value, chosen.tokens.value)),
        ):
            assert constant is not None
            assert constant.low is not None
            assert constant.high is not None
            assert constant.low <= true <= constant.high
            assert constant.low <= constant.value <= constant.high


def test_draws_have_ten_digits() -> None:
    """Intervals of N and D rest on them, and the constants depend on each other."""
    law = fitted(runs_of(noise=0.005)).law
    digits = [len(f"{number!r}".replace(".", "").lstrip("0")) for draw in law.bootstrap for number in draw]
    assert max(digits) <= 10
    assert sum(digits) > 9 * len(digits)


def test_residuals_are_of_each_run() -> None:
    runs = runs_of(noise=0.003)
    found = fitted(runs)
    for run, residual in zip(runs, found.runs, strict=True):
        assert (residual.line, residual.parameters, residual.loss) == (run.line, run.parameters, run.loss)
        assert residual.predicted_loss == predicted_loss(found.law, run.parameters, run.tokens)
        assert residual.residual == pytest.approx(np.log(run.loss / residual.predicted_loss))
    assert found.median_residual == np.median([abs(run.residual) for run in found.runs])
    assert 0.0005 < found.median_residual < 0.004


def test_exponents_of_the_optimum() -> None:
    """Hoffmann et al. 2022, eq. 4: a = beta / (alpha + beta) = 0.28 / 0.62 and b = 0.34 / 0.62; N = k C^a."""
    found = fitted(runs_of())
    of_n, of_d = found.parameters_power, found.tokens_power
    assert of_n.exponent.value == pytest.approx(0.28 / 0.62, rel=1e-4)
    assert of_d.exponent.value == pytest.approx(0.34 / 0.62, rel=1e-4)
    assert of_n.coefficient.value * 1e24**of_n.exponent.value == pytest.approx(
        compute_optimum(found.law, 1e24).parameters, rel=1e-6
    )
    assert of_n.coefficient.value * of_d.coefficient.value == pytest.approx(1 / 6)


def test_both_approaches_side_by_side() -> None:
    found = fitted(runs_of(noise=0.002, budgets=BUDGETS, sizes=9), training_flops=[1e20])
    assert found.isoflop is not None
    assert found.isoflop_left_out is None
    assert [budget.training_flops for budget in found.isoflop.budgets] == pytest.approx(BUDGETS)
    (at,) = found.optima
    assert (at.chosen, at.isoflop is not None) == ("given", True)
    assert at.isoflop is not None
    power = found.isoflop.parameters_power
    assert at.isoflop.parameters.value == pytest.approx(power.coefficient.value * 1e20**power.exponent.value)
    assert at.parametric is not None
    assert at.isoflop.parameters.value == pytest.approx(at.parametric.parameters.value, rel=0.15)
    assert at.isoflop.loss is None


def test_runs_without_repeated_budgets_have_no_parabolas() -> None:
    runs = [changed(run, training_flops=run.training_flops * 1.3**run.line) for run in runs_of(noise=0.002)]
    found = fitted(runs)
    assert found.isoflop is None
    assert found.isoflop_left_out is not None
    assert "no IsoFLOP parabolas: no budget repeats: it needs four runs of different sizes" in " ".join(found.warnings)
    assert all(at.isoflop is None for at in found.optima)
    two = fitted(runs_of(noise=0.002, budgets=(1e18, 1e20), sizes=8))
    assert two.isoflop_left_out == "2 budgets have a minimum among the runs, and a power law needs 3"


def test_what_is_beyond_the_runs_is_told_in_orders_of_magnitude() -> None:
    assert orders_from_range(5e9, 1e7, 1e9) == pytest.approx(0.69897)
    assert orders_from_range(1e5, 1e7, 1e9) == pytest.approx(-2)
    assert orders_from_range(1e8, 1e7, 1e9) == 0
    found = fitted(runs_of(noise=0.002), training_flops=[1e20, 1e25])
    assert [at.beyond_parameters > 0 for at in found.optima] == [False, True]
    (told,) = [warning for warning in found.warnings if warning.startswith("at 1e+25 FLOPs the optimum lies outside")]
    beyond = found.optima[1]
    assert f"N {beyond.beyond_parameters:.2g} orders of magnitude above the largest" in told
    assert f"D {beyond.beyond_tokens:.2g} orders of magnitude above the largest" in told


def test_doubts_of_the_runs() -> None:
    runs = runs_of(noise=0.002, budgets=(1e20, 3e20, 5e20), sizes=4)
    runs[2] = changed(runs[2], loss=1.3 * runs[2].loss)
    doubts = fitted([changed(run, training_flops=2 * run.training_flops) for run in runs]).warnings
    assert "12 runs are few for five constants: below 30, intervals by resampling are too narrow" in doubts
    assert "the runs' budgets span a factor of 5: less than one order of magnitude decides little" in doubts
    own = "the file's FLOPs are 2 × 6 N D at the median: budgets here are the file's FLOPs; elsewhere the law is "
    assert f"{own}followed with 6 N D" in doubts
    assert any(doubt.startswith("line 4 lies far from the law, up to +2") for doubt in doubts)
    many = runs_of(noise=0.002, budgets=BUDGETS, sizes=8)
    assert not [doubt for doubt in fitted(many).warnings if not doubt.startswith("at 1e+23 FLOPs the optimum")]


def test_doubts_of_the_law() -> None:
    law = fitted(runs_of(noise=0.001)).law
    assert doubts_of_law(law, [False] * 5, 100, 2) == []
    assert doubts_of_law(law, [True, False, False, False, True], 100, 3) == [
        f"the irreducible loss ends at a bound, {law.irreducible_loss.value:.3g}: the runs do not decide it",
        f"the token exponent ends at a bound, {law.token_exponent.value:.3g}: the runs do not decide it",
        "3% of the resamples end at a bound: intervals say less than they seem to",
    ]
    wide = msgspec.structs.replace(
        law, parameter_exponent=msgspec.structs.replace(law.parameter_exponent, low=0.2, high=0.9)
    )
    assert doubts_of_law(wide, [False] * 5, 100, 0) == ["the runs do not decide the parameter exponent: 0.2 to 0.9"]


def test_doubts_of_the_search_and_of_parabolas() -> None:
    assert doubts_of_search(GridCheck(resamples=20, agreed=20, largest_excess=0)) == []
    assert doubts_of_search(GridCheck(resamples=20, agreed=18, largest_excess=0.0123)) == [
        "of 20 resamples fitted from the full grid, 2 have a better minimum there, by up to 1.2% (told from 0.1% on): "
        "the intervals may be too narrow"
    ]
    assert doubts_of_search(GridCheck(resamples=20, agreed=19, largest_excess=0.0009)) == []
    assert "1 has a better" in doubts_of_search(GridCheck(resamples=20, agreed=19, largest_excess=0.001))[0]
    found = fitted(runs_of(noise=0.002, sizes=9))
    assert found.isoflop is not None
    few = "IsoFLOP power laws go through 4 budgets: below 5, their intervals say little"
    assert doubts_of_isoflops(found.isoflop, None, found.optima, runs_of()) == [few]
    at = found.optima[0]
    assert at.isoflop is not None
    lower = msgspec.structs.replace(
        at.isoflop, parameters=msgspec.structs.replace(at.isoflop.parameters, low=1, high=2)
    )
    apart = doubts_of_isoflops(found.isoflop, None, [msgspec.structs.replace(at, isoflop=lower)], runs_of())
    assert (
        apart[1] == "the intervals of N by the two approaches do not meet at 1e+21 FLOPs: the law's form may not hold"
    )


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"resamples": 99}, r"resamples = 99: must be a whole number from 100 to 5,000"),
        ({"resamples": 5001}, r"resamples = 5001: must be a whole number from 100 to 5,000"),
        ({"resamples": 100.5}, r"resamples = 100.5: must be a whole number from 100 to 5,000"),
        ({"seed": 1.5}, r"seed = 1.5: must be a whole number from 0 to 4,294,967,295"),
        ({"training_flops": ["1e20"]}, r"training_flops = '1e20': must be FLOPs from 1 to 1e\+36, as 5.76e23"),
        ({"seed": -1}, r"seed = -1: must be a whole number from 0 to 4,294,967,295"),
        ({"training_flops": [0.5]}, r"training_flops = 0.5: must be FLOPs from 1 to 1e\+36, as 5.76e23"),
        ({"training_flops": [float("nan")]}, r"training_flops = nan: must be FLOPs from 1 to 1e\+36, as 5.76e23"),
    ],
)
def test_numbers_out_of_range(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{error}$"):
        fitted(runs_of(), **arguments)


@pytest.mark.sweep
def test_intervals_hold_the_constants_of_a_known_law() -> None:
    """In 90 to 99 % of 200 repetitions. By chance alone, a share of 95 % has a standard deviation of 1.5 %."""
    held = share_held(repetitions=200, resamples=200)
    assert {name: share for name, share in held.items() if not 0.90 <= share <= 0.99} == {}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_runs_that_follow_no_law_are_doubted_and_never_crash(seed: int) -> None:
    random = np.random.default_rng(seed)
    runs = [
        TrainedRun(line=line, parameters=size, tokens=tokens, training_flops=6 * size * tokens, loss=loss)
        for line, (size, tokens, loss) in enumerate(
            zip(10 ** random.uniform(6, 10, 24), 10 ** random.uniform(8, 12, 24), random.uniform(1, 5, 24), strict=True)
        )
    ]
    found = fitted(runs, training_flops=[1e18, 1e30])
    doubts = " ".join(found.warnings)
    assert "do not decide" in doubts
    assert "of the resamples end at a bound" in doubts
    assert found.undecided_terms
    assert found.law.bootstrap == ()
    for at in found.optima:
        assert at.parametric is None or at.parametric.parameters.low is None
    assert "at 1e+30 FLOPs" in doubts


def without_tokens(noise: float) -> list[TrainedRun]:
    """Runs whose loss is 1.7 + 400 / N^0.34, whatever D is; written with six decimals if there is no noise."""
    return [
        changed(run, loss=round(run.loss, 6))
        for run in runs_of((1.7, 400, 0, 0.34, 0.3), budgets=BUDGETS, sizes=8, noise=noise)
    ]


@pytest.mark.parametrize("noise", [0, 0.003])
def test_a_term_that_says_nothing_has_no_interval(noise: float) -> None:
    found = fitted(without_tokens(noise))
    law = found.law
    assert found.undecided_terms == ("tokens",)
    assert found.warnings[0] == (
        "the runs do not decide the token term: without it the law describes them as well, so B and beta have no "
        "interval, and neither have N and D of a budget"
    )
    assert (law.token_coefficient.low, law.token_exponent.high, law.bootstrap) == (None, None, ())
    assert law.parameter_exponent.low is not None
    assert law.parameter_exponent.low <= law.parameter_exponent.value
    assert law.parameter_exponent.value == pytest.approx(0.34, abs=0.02)
    assert (found.parameters_power.exponent.low, found.tokens_power.exponent.high) == (None, None)
    for at in found.optima:
        assert at.parametric is None or (at.parametric.parameters.low, at.parametric.tokens.high) == (None, None)


def test_sizes_that_grow_together_do_not_tell_the_terms_apart() -> None:
    """With D = 20 N at every run, each term alone describes them."""
    runs = [
        TrainedRun(
            line=number,
            parameters=size,
            tokens=20 * size,
            training_flops=120 * size**2,
            loss=1.7 + 500 / size**0.33 + random / 1000,
        )
        for number, (size, random) in enumerate(
            zip(10 ** np.linspace(7, 10, 40), np.random.default_rng(0).normal(0, 5, 40), strict=True), start=2
        )
    ]
    assert fitted(runs).undecided_terms == ("parameters", "tokens")


@pytest.mark.parametrize("noise", [0, 0.004, 0.02])
def test_terms_of_a_law_that_holds_are_decided(noise: float) -> None:
    for seed in range(2):
        assert fitted(runs_of(budgets=BUDGETS, sizes=8, noise=noise, seed=seed)).undecided_terms == ()


def test_a_law_without_an_optimum_is_not_lost() -> None:
    """The loss rises with N and D: the best constants are at bounds, and N or D at a budget less than one."""
    runs = [changed(run, loss=1e-5 * run.parameters**0.5 * run.tokens**0.1) for run in runs_of()]
    found = fitted(runs)
    assert found.undecided_terms == ("parameters", "tokens")
    at = found.optima[0]
    assert at.parametric is None
    assert at.left_out is not None
    assert f"at 1e+21 FLOPs there is no optimum: {at.left_out}" in found.warnings
    units = [changed(run, parameters=1e-12 * run.parameters, tokens=1e-12 * run.tokens) for run in runs_of(noise=0.003)]
    units = [changed(run, training_flops=6 * run.parameters * run.tokens) for run in units]
    found = fitted(units)
    assert found.optima[0].left_out is not None
    assert "N or D of a run is below 1: give both as plain numbers, and not in millions or billions" in found.warnings
    curves = fit_curves(found)
    assert (curves.training_flops, curves.lowest_loss) == ((), ())


def test_budgets_are_in_the_flops_of_the_file() -> None:
    """C = 20 N D in the file: both approaches have the N and D with 20 N D = C, as with 6 N D they have 6 N D = C."""
    runs = runs_of(noise=0.002, budgets=BUDGETS, sizes=9)
    own = fitted([changed(run, training_flops=20 * run.parameters * run.tokens) for run in runs])
    assert own.flops_per_parameter_and_token == pytest.approx(20)
    assert not [doubt for doubt in own.warnings if "do not meet" in doubt]
    plain = fitted(runs)
    assert plain.flops_per_parameter_and_token == 6
    for at, there in zip(own.optima, plain.optima, strict=True):
        assert at.training_flops == pytest.approx(there.training_flops * 20 / 6)
        assert at.parametric is not None
        assert there.parametric is not None
        assert at.isoflop is not None
        n, d = at.parametric.parameters.value, at.parametric.tokens.value
        assert 20 * n * d == pytest.approx(at.training_flops)
        assert n == pytest.approx(there.parametric.parameters.value)
        assert at.isoflop.parameters.value == pytest.approx(n, rel=0.15)
        power = own.parameters_power
        assert power.coefficient.value * at.training_flops**power.exponent.value == pytest.approx(n)
    for curve, there_ in zip(fit_curves(own).lowest_loss, fit_curves(plain).lowest_loss, strict=True):
        assert curve == pytest.approx(there_)


def test_a_budget_that_is_left_out_is_named() -> None:
    left_out = fitted(without_tokens(0.003)).isoflop_left_out
    assert left_out == (
        "0 budgets have a minimum among the runs, and a power law needs 3; at 1e+18 FLOPs: the lowest loss is at the "
        "smallest or the largest size, so that the best lies outside"
    )
