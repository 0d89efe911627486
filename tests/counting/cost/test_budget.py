"""What a budget buys, against reference figures, and what is refused."""

from collections.abc import Mapping, Sequence

import msgspec
import pytest

from counting.cost.budget import (
    DEFAULT_GPUS,
    BudgetPlan,
    check_dollars,
    check_mfu,
    plan_budget,
)
from counting.cost.hardware import find_gpu
from counting.cost.scaling_laws import find_law
from counting.cost.scaling_laws.wrong_choice import laws_apart
from tests.counting.cost.scaling_laws.own_laws import law_of
from torch_models.errors import UserError


def test_five_million_dollars_on_the_default_gpus() -> None:
    plan = plan_budget(5e6)
    assert (plan.best_gpu, plan.scaling_law, plan.mfu) == ("A100", "course", 0.4)
    assert plan.training_flops == 5616 * 10**20
    assert plan.optimal_parameters == 47_476_210_890
    assert plan.optimal_tokens == 1_971_513_695_919
    assert plan.tokens_per_parameter == pytest.approx(41.526, abs=1e-3)
    assert plan.predicted_loss == pytest.approx(1.89696, abs=5e-6)
    assert plan.gpu_hours == 1_250_000
    assert plan.extrapolated


def test_a_law_of_one_s_own_and_its_intervals() -> None:
    """Draws of E alone move the loss, not N and D: of 1.6 to 2 in steps of 0.01, 2.5 % is 1.61, 97.5 % is 1.99."""
    draws = [(1.6 + n / 100, 406.4, 410.7, 0.34, 0.29) for n in range(41)]
    law = law_of((1.69, 406.4, 410.7, 0.34, 0.29), *draws)
    plan, course = plan_budget(5e6, scaling_law=law), plan_budget(5e6)
    assert (plan.law, plan.scaling_law, plan.optimal_parameters) == (law, "own", course.optimal_parameters)
    assert plan.intervals is not None
    n, d = plan.intervals.parameters, plan.intervals.tokens
    assert [n.low, n.high] == pytest.approx([plan.optimal_parameters] * 2, rel=1e-9)
    assert [d.low, d.high] == pytest.approx([plan.optimal_tokens] * 2, rel=1e-9)
    ends = [plan.intervals.loss.low, plan.intervals.loss.high]
    assert ends == pytest.approx([plan.predicted_loss - 1.69 + e for e in (1.61, 1.99)], rel=1e-12)
    assert [optimum.law for optimum in plan.apart.optima][:2] == ["own", "course"]
    assert (course.intervals, course.apart) == (None, laws_apart(find_law("course"), course.training_flops))


def test_how_far_beyond_the_law_is() -> None:
    """N = 47.476 G is 10^0.472 of 16 G, D = 1.97151 T is 10^0.596 of 500 G."""
    assert plan_budget(5e6).orders_beyond == pytest.approx(0.5958, abs=1e-4)
    inside = plan_budget(1e3)
    assert (inside.extrapolated, inside.orders_beyond) == (False, 0)


def test_each_option_of_five_million_dollars() -> None:
    options = {option.gpu: option for option in plan_budget(5e6).options}
    assert list(options) == ["A100", "V100", "T4"]
    assert options["A100"].training_flops == 5616 * 10**20
    assert options["V100"].training_flops == 36 * 10**22
    assert options["T4"].training_flops == 468 * 10**21
    assert [option.gpu_hours for option in options.values()] == [1.25e6, 2e6, 5e6]
    assert [option.training_dtype for option in options.values()] == ["bfloat16", "float16", "float16"]


def test_five_million_dollars_on_newer_gpus() -> None:
    plan = plan_budget(5e6, gpus=["H100", "H200", "B200"])
    assert plan.best_gpu == "B200"
    assert plan.training_flops == 27 * 10**23
    assert plan.optimal_parameters == pytest.approx(9.7810033e10, rel=1e-8)
    assert plan.optimal_tokens == pytest.approx(4.600755e12, rel=1e-7)
    assert plan.predicted_loss == pytest.approx(1.85187, abs=5e-6)


@pytest.mark.parametrize("budget", [1.0, 1e3, 5e6, 1e9, 1e15])
@pytest.mark.parametrize("mfu", [0.1, 0.4, 1.0])
def test_the_tokens_do_not_exceed_the_flops(budget: float, mfu: float) -> None:
    plan = plan_budget(budget, mfu=mfu)
    assert isinstance(plan.optimal_parameters, int)
    assert isinstance(plan.optimal_tokens, int)
    spent = 6 * plan.optimal_parameters * plan.optimal_tokens
    assert spent <= plan.training_flops < spent + 6 * plan.optimal_parameters


def test_flops_grow_with_budget_and_utilisation() -> None:
    base = plan_budget(1e6, mfu=0.2).training_flops
    assert plan_budget(2e6, mfu=0.2).training_flops == 2 * base
    assert plan_budget(1e6, mfu=0.4).training_flops == 2 * base


def test_of_equals_the_first_is_best() -> None:
    prices = {"H100": 2.0, "H200": 2.0}
    assert plan_budget(1e6, gpus=["H200", "H100"], prices_usd_per_hour=prices).best_gpu == "H200"
    assert plan_budget(1e6, gpus=["H100", "H200"], prices_usd_per_hour=prices).best_gpu == "H100"


def test_a_given_price_replaces_the_catalogues_and_completes_it() -> None:
    plan = plan_budget(1e6, gpus=["A100", "MI300X"], prices_usd_per_hour={"a100": 1.0, "MI300X": 2.5})
    assert [option.price_usd_per_hour for option in plan.options] == [1.0, 2.5]
    assert plan.options[0].gpu_hours == 1e6
    assert plan.best_gpu == "MI300X"  # 1307 / 2.5 = 523 against 312 TFLOP/s per dollar


def test_days_on_a_number_of_gpus() -> None:
    """$5 million are 1.25 million A100-hours: on 1,000 of them 1,250 hours."""
    plan = plan_budget(5e6, num_gpus=1000)
    assert (plan.best_gpu, plan.num_gpus, plan.days) == ("A100", 1000, 1250 / 24)
    without = plan_budget(5e6)
    assert (without.num_gpus, without.days) == (None, None)
    assert msgspec.structs.replace(plan, num_gpus=None, days=None) == without


def test_the_catalogue_has_one_that_buys_more_than_the_default_gpus() -> None:
    """H800: 989 TFLOP/s for $2, B200 2,250 for $6, H100 989 for $3, against the A100's 312 for $4."""
    more = plan_budget(5e6).more_on
    assert more is not None
    assert (more.gpu, more.price_usd_per_hour, more.gpu_hours) == ("H800", 2, 2.5e6)
    assert more.training_flops == 25 * 10**5 * 3600 * 989 * 10**12 * 4 // 10


@pytest.mark.parametrize("gpus", [DEFAULT_GPUS, ["A100"], ["H100", "B200"]])
def test_whoever_names_gpus_is_told_of_no_others(gpus: Sequence[str]) -> None:
    assert plan_budget(5e6, gpus=gpus).more_on is None


def test_nothing_buys_more_where_a_given_price_makes_the_default_gpus_best() -> None:
    """The A100 at $0.50: 624 TFLOP/s for a dollar, against the H800's 494.5; at $0.70 it is 446."""
    assert plan_budget(5e6, prices_usd_per_hour={"A100": 0.5}).more_on is None
    assert plan_budget(5e6, prices_usd_per_hour={"A100": 0.7}).more_on is not None


def test_a_gpu_of_one_s_own_buys_as_one_of_the_catalogue() -> None:
    own = msgspec.structs.replace(find_gpu("L4"), name="Mine")
    plan = plan_budget(1e6, gpus=["A100", own], prices_usd_per_hour={" mine": 0.5})
    assert [(option.gpu, option.price_usd_per_hour) for option in plan.options] == [("A100", 4), ("Mine", 0.5)]
    assert plan.best_gpu == "Mine"  # 242 TFLOP/s for a dollar against 78
    with pytest.raises(UserError, match=r"^prices_usd_per_hour = 'Mine': no price is known for Mine"):
        plan_budget(1e6, gpus=[own])
    with pytest.raises(UserError, match=r"^gpus = 'Mine,Mine': names Mine twice$"):
        plan_budget(1e6, gpus=[own, own], prices_usd_per_hour={"Mine": 1.0})


@pytest.mark.parametrize("number", [0, -1, 2.5, True, "8"])
def test_a_number_of_gpus_that_is_none(number: object) -> None:
    with pytest.raises(UserError, match=r"^num_gpus = .*: must be a whole number, at least 1$"):
        plan_budget(5e6, num_gpus=number)  # type: ignore[arg-type]


def test_the_plan_survives_json() -> None:
    plan = plan_budget(5e6, num_gpus=8)
    assert plan.more_on is not None
    assert msgspec.json.decode(msgspec.json.encode(plan), type=BudgetPlan) == plan


DOLLARS_RULE = r"must be a number of US dollars from 0\.01 to 1e\+15"
PRICES = "prices_usd_per_hour"
MFU_RULE = "must be a number from 1e-06 to 1"


@pytest.mark.parametrize("value", [0, -5, 0.009, 1.1e15, 10**400, float("nan"), float("inf"), True, None, "5"])
def test_an_impossible_budget_is_refused(value: object) -> None:
    with pytest.raises(UserError, match=f"^budget_usd = .*: {DOLLARS_RULE}$"):
        check_dollars(value)


@pytest.mark.parametrize("value", [0, -0.4, 9.9e-7, 1.0001, 40, float("nan"), float("inf"), True, None])
def test_an_impossible_utilisation_is_refused(value: object) -> None:
    with pytest.raises(UserError, match=f"^mfu = .*: {MFU_RULE}$"):
        check_mfu(value)


@pytest.mark.parametrize(("value", "expected"), [(0.01, 0.01), (1e15, 1e15), (5_000_000, 5e6)])
def test_a_possible_budget_is_a_float(value: float, expected: float) -> None:
    assert check_dollars(value) == expected
    assert isinstance(check_dollars(value), float)


@pytest.mark.parametrize(
    ("gpus", "prices", "message"),
    [
        ([], {}, "gpus = '': name at least one GPU"),
        (["A100", "T4", "a100"], {}, "gpus = 'A100,T4,a100': names A100 twice"),
        (["A1000"], {}, "gpus = 'A1000': is not known: choose from "),
        (["A100"], {"X1": 2.0}, f"{PRICES} = 'X1': is not known: choose from "),
        (["A100", "L4"], {}, f"{PRICES} = 'L4': no price is known for L4: give one in US dollars per hour$"),
        (["A100"], {"L4": 1.0}, f"{PRICES} = 'L4': a price is given for L4, but the GPUs considered are A100$"),
        (["A100"], {"A100": 1.0, "a100": 2.0}, f"{PRICES} = 'A100,a100': give the price of A100 once$"),
        (["A100"], {"A100": 0.0}, rf"{PRICES} = 'A100=0\.0': {DOLLARS_RULE}$"),
        (["A100"], {"A100": float("nan")}, f"{PRICES} = 'A100=nan': {DOLLARS_RULE}$"),
    ],
)
def test_gpus_and_prices_that_make_no_plan(gpus: Sequence[str], prices: Mapping[str, float], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        plan_budget(1e6, gpus=gpus, prices_usd_per_hour=prices)


def test_an_unknown_law_is_refused() -> None:
    with pytest.raises(UserError, match=r"^scaling_law = 'none': is not known: choose from course, "):
        plan_budget(1e6, scaling_law="none")
