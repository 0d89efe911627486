"""A budget spent on one model: the tokens it pays for, and the scaling law's word on them."""

from fractions import Fraction

import pytest

from counting.analysis import Analysis, analyze
from counting.cost.budget import plan_budget
from counting.cost.budget_on_model import spend_on
from counting.cost.conventions import training_flops_per_token
from counting.cost.scaling_laws import find_law, loss_interval, optimal_tokens, predicted_loss
from counting.setup import Setup
from tests.counting.cost.scaling_laws.own_laws import law_of
from torch_models.errors import UserError


@pytest.fixture(scope="module")
def llama() -> Analysis:
    return analyze("llama_7b", step=False)


@pytest.fixture(scope="module")
def deepseek() -> Analysis:
    return analyze("deepseek_v3", Setup(sequence_length=4096), step=False)


def test_a_dense_model(llama: Analysis) -> None:
    spent = spend_on(llama, plan_budget(5_000_000))
    per_token = Fraction(3 * 29_261_612_187_648, 2048)
    assert spent.tokens * per_token <= 5616 * 10**20 < (spent.tokens + 1) * per_token
    assert not spent.mixture_of_experts
    (reading,) = spent.readings
    law = find_law("course")
    assert (reading.taken_as, reading.parameters) == ("total", 6_738_415_616)
    assert reading.tokens_per_parameter == spent.tokens / 6_738_415_616
    assert reading.optimal_tokens == optimal_tokens(law, 6_738_415_616)
    assert reading.tokens_over_optimal == spent.tokens / reading.optimal_tokens > 10
    assert reading.predicted_loss == predicted_loss(law, 6_738_415_616, spent.tokens)
    assert reading.extrapolated  # 13 trillion tokens


def test_what_the_law_was_fitted_to_is_no_extrapolation() -> None:
    """A billion parameters, and between 5 and 500 billion tokens."""
    model = analyze("llama_3_2_1b", Setup(sequence_length=2048), step=False)
    for budget, within in ((1_000, True), (100, False), (1_000_000, False)):
        spent = spend_on(model, plan_budget(budget))
        assert (5e9 <= spent.tokens <= 500e9) == within
        assert [reading.extrapolated for reading in spent.readings] == [not within]


def test_a_mixture_of_experts_is_taken_twice(deepseek: Analysis) -> None:
    spent = spend_on(deepseek, plan_budget(5_328_000, gpus=["H800"], mfu=0.5))
    assert spent.mixture_of_experts
    assert [(reading.taken_as, reading.parameters) for reading in spent.readings] == [
        ("total", 671_026_404_352),
        ("active", 37_552_282_624),
    ]
    total, active = spent.readings
    assert total.predicted_loss < active.predicted_loss
    assert total.tokens_over_optimal < 1 < active.tokens_over_optimal


def test_the_published_hours_train_the_published_tokens(deepseek: Analysis) -> None:
    hours_flops = 2_664_000 * 3600 * 989 * 10**12
    mfu = float(training_flops_per_token(deepseek) * 148 * 10**11 / hours_flops)
    spent = spend_on(deepseek, plan_budget(5_328_000, gpus=["H800"], mfu=mfu))
    assert spent.tokens == pytest.approx(14.8e12, rel=1e-12)


def test_mtp_costs_tokens_and_the_law_is_the_plans(deepseek: Analysis) -> None:
    plan = plan_budget(5_000_000, scaling_law="hoffmann-2022")
    without = analyze("deepseek_v3", Setup(sequence_length=4096, mtp=False), step=False)
    on, off = spend_on(deepseek, plan), spend_on(without, plan)
    assert on.mtp_trained
    assert not off.mtp_trained
    assert on.tokens < off.tokens
    assert on.scaling_law == "hoffmann-2022"
    law = find_law("hoffmann-2022")
    assert on.readings[1].predicted_loss == predicted_loss(law, 37_552_282_624, on.tokens)


def test_a_law_of_one_s_own_and_its_intervals(llama: Analysis) -> None:
    """Draws of E move the loss alone; without draws there is no interval."""
    draws = [(1.6 + n / 100, 406.4, 410.7, 0.34, 0.29) for n in range(41)]
    law = law_of((1.69, 406.4, 410.7, 0.34, 0.29), *draws)
    (own,) = spend_on(llama, plan_budget(5_000_000, scaling_law=law)).readings
    assert own.predicted_loss_interval == loss_interval(law, own.parameters, own.tokens_per_parameter * own.parameters)
    assert own.predicted_loss_interval is not None
    assert own.predicted_loss_interval.low == pytest.approx(own.predicted_loss - 1.69 + 1.61)
    assert own.optimal_tokens_interval is not None
    assert own.optimal_tokens_interval.high == pytest.approx(own.optimal_tokens)
    (course,) = spend_on(llama, plan_budget(5_000_000)).readings
    assert (course.predicted_loss_interval, course.optimal_tokens_interval) == (None, None)


def test_too_little_for_one_token() -> None:
    long = analyze("deepseek_v3", step=False)
    plan = plan_budget(0.01, gpus=["T4"], mfu=1e-6)
    with pytest.raises(UserError, match=r"deepseek_v3: [\d,]+ training FLOPs do not pay for one token \("):
        spend_on(long, plan)
