"""The law of mixtures of experts: the paper's tables, worked out again."""

import pytest

from counting.cost.scaling_laws import compute_optimum, predicted_loss
from counting.cost.scaling_laws.mixtures import (
    LUDZIEJEWSKI_2025,
    law_at,
    mixture_optimum,
    orders_beyond_mixtures,
    total_parameters,
)
from torch_models.errors import ArgumentError

# Table 4: E, m, mu, n, nu. The constants of table 3 are rounded to four digits, which moves them by up to 0.3 %.
TABLE_4 = (
    (1, 30.3640, -0.1817, 53.9838, -0.1965),
    (2, 27.7982, -0.1780, 66.8401, -0.2065),
    (4, 24.8462, -0.1731, 87.7022, -0.2192),
    (8, 21.8330, -0.1676, 119.9126, -0.2338),
    (16, 19.0159, -0.1617, 167.5073, -0.2494),
    (32, 16.5424, -0.1557, 234.6726, -0.2652),
)
# Table 1: FLOPs, E, billions of active parameters, billions of tokens.
TABLE_1 = (
    (1e20, 1, 1.7, 9.7),
    (1e20, 2, 1.5, 11.4),
    (1e20, 4, 1.2, 13.9),
    (1e20, 8, 0.99, 17),
    (1e20, 16, 0.81, 20.7),
    (1e20, 32, 0.669, 24.9),
    (1e21, 1, 5.7, 29.3),
    (1e21, 2, 5.0, 33),
    (1e21, 4, 4.4, 38),
    (1e21, 8, 3.8, 44.3),
    (1e21, 16, 3.3, 51.2),
    (1e21, 32, 2.85, 58.4),
    (1e22, 1, 18.8, 88.6),
    (1e22, 2, 17.4, 96),
    (1e22, 4, 15.8, 105.4),
    (1e22, 8, 14.4, 115.8),
    (1e22, 16, 13.2, 126.5),
    (1e22, 32, 12.2, 136.9),
)


@pytest.mark.parametrize(("experts", "m", "mu", "n", "nu"), TABLE_4)
def test_table_4(experts: int, m: float, mu: float, n: float, nu: float) -> None:
    law = law_at(LUDZIEJEWSKI_2025, experts)
    assert law.parameter_coefficient.value == pytest.approx(m, rel=3e-3)
    assert law.token_coefficient.value == pytest.approx(n, rel=3e-3)
    assert -law.parameter_exponent.value == pytest.approx(mu, abs=1.5e-4)
    assert -law.token_exponent.value == pytest.approx(nu, abs=1.5e-4)
    assert law.irreducible_loss.value == 1.3637


@pytest.mark.parametrize(("flops", "experts", "parameters", "tokens"), TABLE_1)
def test_table_1(flops: float, experts: int, parameters: float, tokens: float) -> None:
    best = mixture_optimum(flops, experts)
    assert best.parameters / 1e9 == pytest.approx(parameters, rel=0.035)  # two digits of a number from 1.2 on
    assert best.tokens / 1e9 == pytest.approx(tokens, rel=0.012)
    assert 6 * best.parameters * best.tokens <= flops < 6 * best.parameters * (best.tokens + 1)


def test_eight_experts_by_hand() -> None:
    # 1 / (1 / 2.0732 - 1 / 290.4521) = 2.0881046; E' = 1 / (1 / (7 + 2.0881046) + 1 / 290.4521) = 8.8123698
    # ln E' = 2.1761564; m = 35.91 e^(-0.2285 x 2.1761564) = 21.840457; mu = -0.1889 + 0.0098 x 2.1761564 = -0.16757367
    # n = 35.98 e^(0.5529 x 2.1761564) = 119.84031; nu = -0.1775 - 0.0259 x 2.1761564 = -0.23386245
    # L(10^9, 10^10) = 1.3637 + 21.840457 / 10^(9 x 0.16757367) + 119.84031 / 10^(10 x 0.23386245)
    #                = 1.3637 + 21.840457 / 32.222780 + 119.84031 / 218.08435 = 1.3637 + 0.6777956 + 0.5495136
    law = law_at(LUDZIEJEWSKI_2025, 8)
    assert law.parameter_coefficient.value == pytest.approx(21.840457, rel=1e-7)
    assert law.token_coefficient.value == pytest.approx(119.84031, rel=1e-7)
    assert predicted_loss(law, 10**9, 10**10) == pytest.approx(2.5910091, abs=1e-7)


@pytest.mark.parametrize(
    ("width", "layers", "experts", "total", "active"),
    [(1024, 16, 32, 5.0, 0.321), (1664, 26, 4, 3.0, 1.1), (512, 8, 2, 0.098, 0.079), (2304, 36, 1, 2.7, 2.7)],
)
def test_sizes_of_the_runs(width: int, layers: int, experts: int, total: float, active: float) -> None:
    # Appendix E, and eq. 9-10: 2 d V + (4 + 9 E) layers d^2 in total, 2 d V + 13 layers d^2 active, V = 50257.
    of_a_token = 2 * width * 50257 + 13 * layers * width**2
    in_total = 2 * width * 50257 + (4 + 9 * experts) * layers * width**2
    assert (in_total / 1e9, of_a_token / 1e9) == pytest.approx((total, active), rel=0.04)
    assert total_parameters(of_a_token, experts) == pytest.approx(in_total, rel=1e-12)


def test_one_expert_is_the_dense_model() -> None:
    best = mixture_optimum(1e21, 1)
    assert (best.parameters, best.tokens) == (best.dense_parameters, best.dense_tokens)
    assert best.predicted_loss == best.dense_loss
    assert best.total_parameters == best.parameters
    assert best.dense_flops == pytest.approx(1e21, rel=1e-6)


@pytest.mark.parametrize("flops", [1e20, 1e22, 5.616e23])
def test_more_experts_are_better_with_fewer_active_parameters_each_on_more_tokens(flops: float) -> None:
    # Findings 1 and 2 of the paper, at its budgets; at the last budget, far beyond its runs, only the second one.
    rows = [mixture_optimum(flops, experts) for experts in (1, 2, 4, 8, 16, 32)]
    assert [row.predicted_loss for row in rows] == sorted((row.predicted_loss for row in rows), reverse=True)
    assert [row.dense_flops for row in rows] == sorted(row.dense_flops for row in rows)
    assert [row.total_parameters for row in rows] == sorted(row.total_parameters for row in rows)
    if flops <= 1e22:
        assert [row.parameters for row in rows] == sorted((row.parameters for row in rows), reverse=True)


@pytest.mark.parametrize("experts", [1, 2.5, 8, 32])
def test_the_saved_flops_are_those_of_a_dense_model_of_the_same_loss(experts: float) -> None:
    # Figure 2 (b): how much of a dense model's budget a mixture of the same loss saves.
    best = mixture_optimum(1e21, experts)
    dense = law_at(LUDZIEJEWSKI_2025, 1)
    equal = compute_optimum(dense, best.dense_flops)
    assert predicted_loss(dense, equal.parameters, equal.tokens) == pytest.approx(best.predicted_loss, rel=1e-9)


def test_how_far_beyond_the_runs() -> None:
    # 79 million to 2.7 billion active parameters, 0.5 to 80 billion tokens, 1 to 32 experts.
    assert mixture_optimum(1e20, 32).orders_beyond == 0
    for parameters, tokens, experts, orders in (
        (2.7e10, 1e9, 8, 1),
        (7.9e6, 1e9, 8, 1),
        (1e9, 8e12, 8, 2),
        (1e9, 5e6, 8, 2),
        (1e9, 1e9, 320, 1),
        (2.7e10, 8e12, 64, 2),
    ):
        assert orders_beyond_mixtures(LUDZIEJEWSKI_2025, parameters, tokens, experts) == pytest.approx(orders)


@pytest.mark.parametrize("experts", [0.5, 0, -3, float("nan"), float("inf"), 1001, "8", True])
def test_expansion_rates_out_of_range_are_refused(experts: float) -> None:
    with pytest.raises(ArgumentError, match=r"must be a number from 1, a dense model, to 1000"):
        mixture_optimum(1e21, experts)
