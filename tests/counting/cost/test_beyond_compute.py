"""A budget beyond plain compute, and on given models."""

from fractions import Fraction
from math import log10

import pytest

from counting.analysis import Analysis, analyze
from counting.cost.beyond_compute import (
    beyond_compute,
    expansion_rate_of,
    with_inference_tokens,
    with_mixtures,
    with_unique_tokens,
)
from counting.cost.budget import plan_budget
from counting.cost.budget_on_model import spend_on
from counting.cost.conventions import training_flops_per_token
from counting.cost.scaling_laws import find_law, predicted_loss
from counting.cost.scaling_laws.mixtures import LUDZIEJEWSKI_2025, law_at
from counting.cost.scaling_laws.repeated_tokens import data_limited_optimum, loss_with_repeats
from counting.setup import Setup
from torch_models.errors import ArgumentError

PLAN = plan_budget(5_000_000)


@pytest.fixture(scope="module")
def llama() -> Analysis:
    return analyze("llama_7b", Setup(sequence_length=2048), step=False)


@pytest.fixture(scope="module")
def deepseek() -> Analysis:
    return analyze("deepseek_v3", Setup(sequence_length=4096), step=False)


def test_five_million_dollars_and_300_billion_unique_tokens(llama: Analysis) -> None:
    result = with_unique_tokens(PLAN, 300 * 10**9, [spend_on(llama, PLAN)])
    assert result.optimum == data_limited_optimum(find_law("course"), PLAN.training_flops, 300 * 10**9)
    (row,) = result.models
    tokens = spend_on(llama, PLAN).tokens
    assert (row.model, row.taken_as, row.tokens, row.epochs) == ("llama_7b", "total", tokens, tokens / 300e9)
    assert row.predicted_loss == loss_with_repeats(find_law("course"), 6_738_415_616, tokens, 300e9)
    assert row.plain_loss == predicted_loss(find_law("course"), 6_738_415_616, tokens) < row.predicted_loss


def test_a_mixture_repeats_with_both_sizes(deepseek: Analysis) -> None:
    result = with_unique_tokens(PLAN, 10**11, [spend_on(deepseek, PLAN)])
    assert [row.taken_as for row in result.models] == ["total", "active"]
    assert result.models[0].predicted_loss < result.models[1].predicted_loss


def test_five_million_dollars_and_two_trillion_tokens_served(llama: Analysis) -> None:
    result = with_inference_tokens(PLAN, 2 * 10**12, [llama])
    (row,) = result.models
    # 29,261,612,187,648 FLOPs forward for 2048 tokens (the reference figure): 2e12 tokens take 2.857579e22 of 5.616e23.
    assert row.inference_flops == 2 * 10**12 * 29_261_612_187_648 // 2048
    assert row.share == pytest.approx(0.0508828, abs=1e-7)
    left = Fraction(PLAN.training_flops - row.inference_flops) / training_flops_per_token(llama)
    assert row.tokens <= left < row.tokens + 1
    best = result.optimum.best
    assert (best.parameters / 1e9, best.tokens / 1e12) == pytest.approx((29.364, 2.5209), abs=1e-3)


def test_serving_may_be_more_than_the_budget(llama: Analysis) -> None:
    (row,) = with_inference_tokens(PLAN, 10**14, [llama]).models
    assert row.share > 1
    assert row.tokens == 0


@pytest.mark.parametrize(
    ("model", "rate"), [("mixtral_8x7b", 4), ("qwen3_30b_a3b", 16), ("llama_7b", 1)], ids=lambda value: str(value)
)
def test_the_expansion_rate_is_experts_to_those_in_use(model: str, rate: float) -> None:
    # 8 experts of which 2 run; 128 of which 8 run; none.
    assert expansion_rate_of(analyze(model, Setup(sequence_length=64), step=False).parameters) == rate


def test_dense_layers_and_shared_experts_lower_the_expansion_rate(deepseek: Analysis) -> None:
    # Three matrices of 7168: 58 layers with 256 routed and one shared expert of 2048, of which 8 and 1 run, and 3 dense
    # layers of 18432: (58 x 257 x 2048 + 3 x 18432) / (58 x 9 x 2048 + 3 x 18432) = 30582784 / 1124352 = 27.2003642
    assert expansion_rate_of(deepseek.parameters) == pytest.approx(27.2003642, abs=1e-7)


def test_a_given_mixture_is_held_against_the_law_of_mixtures(deepseek: Analysis, llama: Analysis) -> None:
    analyses = [llama, deepseek]
    result = with_mixtures(PLAN, None, analyses, [spend_on(analysis, PLAN) for analysis in analyses])
    assert result is not None
    assert result.optimum is None
    (row,) = result.models
    law = law_at(LUDZIEJEWSKI_2025, row.expansion_rate)
    assert (row.model, row.parameters, row.total_parameters) == ("deepseek_v3", 37_552_282_624, 671_026_404_352)
    assert row.predicted_loss == predicted_loss(law, 37_552_282_624, row.tokens) < row.dense_loss
    assert row.dense_loss == predicted_loss(law_at(LUDZIEJEWSKI_2025, 1), 37_552_282_624, row.tokens)
    assert row.orders_beyond == pytest.approx(log10(row.tokens / 80e9))  # 24 times; 14 times as many parameters


def test_without_a_mixture_there_is_no_law_of_mixtures(llama: Analysis) -> None:
    assert with_mixtures(PLAN, None, [llama], [spend_on(llama, PLAN)]) is None
    nothing = beyond_compute(PLAN)
    assert (nothing.data_limited, nothing.inference_aware, nothing.mixture) == (None, None, None)


def test_each_is_asked_for_itself() -> None:
    every = beyond_compute(PLAN, unique_tokens=10**12, inference_tokens=10**12, expansion_rate=8)
    assert every.data_limited == with_unique_tokens(PLAN, 10**12)
    assert every.inference_aware == with_inference_tokens(PLAN, 10**12)
    assert every.mixture == with_mixtures(PLAN, 8)


@pytest.mark.parametrize("field", ["unique_tokens", "inference_tokens"])
@pytest.mark.parametrize("tokens", [0, -1, 1.5, "300B", True])
def test_tokens_must_be_a_whole_number(field: str, tokens: int) -> None:
    with pytest.raises(ArgumentError, match=f"{field} = .*must be a whole number, at least 1"):
        beyond_compute(PLAN, **{field: tokens})
