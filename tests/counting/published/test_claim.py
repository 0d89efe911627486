"""The claim about DeepSeek-V3: each number of the page follows from what was published."""

import pytest

from counting.cost.hardware import find_gpu
from counting.published.claim import Claim, examine_claim


@pytest.fixture(scope="module")
def claim() -> Claim:
    return examine_claim()


def test_the_bill_is_the_published_one(claim: Claim) -> None:
    assert [(phase.gpu_hours, phase.cost_usd) for phase in claim.phases] == [
        (2_664_000, 5_328_000),
        (119_000, 238_000),
        (5_000, 10_000),
    ]
    assert (claim.total_gpu_hours, claim.total_cost_usd) == (2_788_000, 5_576_000)
    assert claim.days == 2_664_000 / 2048 / 24


def test_the_hours_agree_with_the_utilisation_measured_in_the_run(claim: Claim) -> None:
    implied = {entry.convention: entry for entry in claim.run.implied_mfu}
    assert max(entry.mfu for entry in implied.values()) < 0.5
    full, causal = implied["6N_full_attention"].mfu / 0.4373 - 1, implied["6N_causal_attention"].mfu / 0.3894 - 1
    assert claim.largest_mfu_difference == pytest.approx(max(abs(full), abs(causal)), rel=1e-12)
    assert claim.largest_mfu_difference < 0.005
    assert f"{implied['6N_causal_attention'].training_flops:.3e}" == "3.707e+24"
    assert claim.mfu == implied["own"].mfu


def test_other_gpus_at_their_prices_and_the_same_mfu(claim: Claim) -> None:
    assert [gpu.gpu for gpu in claim.on_gpus] == ["A100", "H100", "H800", "B200"]
    for on_gpu in claim.on_gpus:
        gpu = find_gpu(on_gpu.gpu)
        assert on_gpu.gpu_hours == pytest.approx(2_664_000 * 989 / gpu.peak_dense_tflop_per_s, rel=1e-12)
        assert on_gpu.cost_usd == pytest.approx(on_gpu.gpu_hours * (gpu.price_usd_per_hour or 0), rel=1e-12)
    assert claim.on_gpus[2].cost_usd == 5_328_000


def test_dense_models_of_the_same_total_and_active_size(claim: Claim) -> None:
    itself, total, active = claim.models
    assert itself.cost_usd == 5_328_000
    assert itself.cost_over_claim == 1
    for model, size in ((total, 671_026_404_352), (active, 37_552_282_624)):
        assert model.total_parameters == model.active_parameters == pytest.approx(size, rel=0.005)
        assert model.training_flops_per_token > 0.95 * 6 * model.total_parameters
        assert model.cost_over_claim == pytest.approx(
            model.training_flops_per_token / itself.training_flops_per_token, rel=1e-9
        )
        assert model.cost_usd == pytest.approx(5_328_000 * model.cost_over_claim, rel=1e-9)
    assert total.cost_over_claim > 10
    assert active.cost_over_claim < 1


def test_cost_moves_with_price_and_against_mfu(claim: Claim) -> None:
    assert [row.mfu for row in claim.costs] == sorted({0.2, 0.3, 0.4, 0.5, 0.6, claim.mfu})
    for row in claim.costs:
        assert row.gpu_hours == pytest.approx(2_664_000 * claim.mfu / row.mfu, rel=1e-12)
        assert row.costs_usd == pytest.approx([row.gpu_hours * price for price in claim.prices_usd_per_hour], rel=1e-12)


def test_what_is_left_out_has_a_source(claim: Claim) -> None:
    assert "research" in claim.left_out.what
    assert "ablations" in claim.left_out.what
    assert "2412.19437" in claim.left_out.source
