"""A training run: hours, days, dollars, energy; and the MFU that hours imply."""

import json
from fractions import Fraction
from math import ceil

import msgspec
import pytest

from counting.analysis import Analysis, analyze
from counting.cost.hardware import find_gpu
from counting.cost.run import MFU_RANGE, RunPlan, TrainingRun, model_state_bytes, plan_run
from counting.setup import Setup
from tests.counting.batches import with_micro_batches
from tests.counting.spread import rank_class, spread
from tests.shrunken import LLAMA
from torch_models.errors import UserError
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout

LLAMA_FLOPS = Fraction(3 * 29_261_612_187_648, 2048)  # per token, at sequence length 2048


@pytest.fixture(scope="module")
def llama() -> Analysis:
    return analyze("llama_7b", step=False)


@pytest.fixture(scope="module")
def deepseek() -> Analysis:
    return analyze("deepseek_v3", Setup(sequence_length=4096), step=False)


def test_a_run_by_hand(llama: Analysis) -> None:
    plan = RunPlan(tokens=10**12, gpus=("A100",), num_gpus=1000, mfus=(0.4,))
    run = plan_run(with_micro_batches(llama, 1953), plan)
    assert run.training_flops_per_token == ceil(LLAMA_FLOPS)
    assert run.training_flops == LLAMA_FLOPS * 10**12
    assert run.global_batch_tokens == 1953 * 2048
    assert run.steps == 250_017  # 250,016.001 of them
    (on_gpu,) = run.gpus
    (outcome,) = on_gpu.outcomes
    hours = LLAMA_FLOPS * 10**12 / (312 * 10**12 * Fraction(2, 5) * 3600)
    assert outcome.gpu_hours == float(hours)
    assert outcome.days == float(hours / 1000 / 24)
    assert outcome.cost_usd == float(hours * 4)
    assert outcome.energy_mwh == float(hours * 400 / 10**6)
    assert outcome.tokens_per_second == float(10**12 * 1000 / (hours * 3600))
    assert on_gpu.implied_mfu == ()


def test_a_step_of_a_layout_is_that_of_all_ranks_with_different_data(llama: Analysis) -> None:
    layout = Layout(num_gpus=64, gpus_per_node=8, dp=2, fsdp=4, tp=8)
    plan = RunPlan(tokens=10**12, gpus=("A100",))
    run = plan_run(spread(with_micro_batches(llama, 3), layout, rank_class(10**9, count=64)), plan)
    assert (run.global_batch_tokens, run.steps) == (8 * 3 * 2048, ceil(Fraction(10**12, 8 * 3 * 2048)))
    of_one = plan_run(spread(with_micro_batches(llama, 1), layout, rank_class(10**9, count=64)), plan)
    assert of_one.global_batch_tokens == 8 * 2048


def test_a_row_for_each_gpu_and_a_range_of_utilisation(llama: Analysis) -> None:
    run = plan_run(llama, RunPlan(tokens=10**12, gpus=("H100", "B200")))
    assert [gpu.gpu for gpu in run.gpus] == ["H100", "B200"]
    for gpu in run.gpus:
        assert [outcome.mfu for outcome in gpu.outcomes] == list(MFU_RANGE) == [0.3, 0.4, 0.5]
        hours = [outcome.gpu_hours for outcome in gpu.outcomes]
        assert hours[0] * 0.3 == pytest.approx(hours[2] * 0.5, rel=1e-12)
        assert all(outcome.days is None and outcome.tokens_per_second is None for outcome in gpu.outcomes)
    assert run.steps is None


def test_who_says_the_utilisation(llama: Analysis) -> None:
    plan = RunPlan(tokens=10**12, gpus=("A100",))
    for change, source in (({}, "assumed"), ({"mfus": (0.3, 0.4)}, "given"), ({"gpu_hours": 82_432}, "given")):
        run = plan_run(llama, msgspec.structs.replace(plan, **change))
        assert {outcome.mfu_source for outcome in run.gpus[0].outcomes} == {source}


def test_no_energy_where_no_power_is_known(llama: Analysis) -> None:
    run = plan_run(llama, RunPlan(tokens=10, gpus=("TPU-v4",), prices_usd_per_hour={"TPU-v4": 3}))
    assert all(outcome.energy_mwh is None for outcome in run.gpus[0].outcomes)


def test_hours_and_mfu_are_each_others_inverse(deepseek: Analysis) -> None:
    plan = RunPlan(tokens=10**12, gpus=("H800",), mfus=(0.4,))
    hours = plan_run(deepseek, plan).gpus[0].outcomes[0].gpu_hours
    back = plan_run(deepseek, msgspec.structs.replace(plan, mfus=None, gpu_hours=hours)).gpus[0]
    assert {entry.convention: entry.mfu for entry in back.implied_mfu}["own"] == pytest.approx(0.4, rel=1e-12)
    assert back.outcomes[0].mfu == pytest.approx(0.4, rel=1e-12)
    assert back.outcomes[0].gpu_hours == hours


def test_implied_mfu_of_deepseek_v3(deepseek: Analysis) -> None:
    plan = RunPlan(tokens=148 * 10**11, gpus=("H800",), num_gpus=2048, gpu_hours=2_664_000)
    (on_gpu,) = plan_run(deepseek, plan).gpus
    assert [(entry.convention, f"{entry.mfu:.2%}") for entry in on_gpu.implied_mfu] == [
        ("6N", "35.16%"),
        ("6N_full_attention", "43.87%"),
        ("6N_causal_attention", "39.08%"),
        ("own", "45.54%"),
    ]
    assert on_gpu.outcomes[0].cost_usd == 5_328_000
    assert f"{on_gpu.outcomes[0].days:.1f}" == "54.2"


def test_a_run_under_way_by_hand(llama: Analysis) -> None:
    """11,000 tokens a second on each of 8 H100s; 6N of Llama-7B is 6 x 6,738,415,616 FLOPs a token."""
    plan = RunPlan(tokens=10**12, gpus=("H100",), num_gpus=8, tokens_per_second_per_gpu=11_000)
    run = plan_run(llama, plan)
    assert (run.tokens_per_second_per_gpu, run.published_gpu_hours) == (11_000, None)
    (on_gpu,) = run.gpus
    (outcome,) = on_gpu.outcomes
    hours = Fraction(10**12, 11_000 * 3600)
    assert (outcome.gpu_hours, outcome.days) == (float(hours), float(hours / 8 / 24))
    assert outcome.cost_usd == float(hours * 3)
    assert outcome.tokens_per_second == 88_000
    peak = 989 * 10**12
    assert (outcome.mfu, outcome.mfu_source) == (float(LLAMA_FLOPS * 11_000 / peak), "given")
    core = 32 * 4 * 2048 * 4096  # a forward pass over one token, each query with all 2,048 keys
    multiplied = 6 * (6_738_415_616 - 32_000 * 4096)
    assert {entry.convention: entry.mfu for entry in on_gpu.implied_mfu} == {
        "6N": float(Fraction(6 * 6_738_415_616 * 11_000, peak)),
        "6N_full_attention": float(Fraction((multiplied + 3 * core) * 11_000, peak)),
        "6N_causal_attention": float((multiplied + Fraction(3 * core, 2)) * 11_000 / peak),
        "own": float(LLAMA_FLOPS * 11_000 / peak),
    }
    assert [f"{entry.mfu:.2%}" for entry in on_gpu.implied_mfu] == ["44.97%", "47.68%", "45.88%", "47.67%"]


def test_speed_and_hours_say_the_same(llama: Analysis) -> None:
    """1,000 hours of one GPU for 3.6 x 10^10 tokens are 10,000 tokens a second."""
    plan = RunPlan(tokens=36 * 10**9, gpus=("H100",), gpu_hours=1_000)
    of_speed = msgspec.structs.replace(plan, gpu_hours=None, tokens_per_second_per_gpu=10_000)
    hours, speed = (plan_run(llama, each).gpus for each in (plan, of_speed))
    assert hours == speed


def test_mtp_is_trained_unless_it_is_off(deepseek: Analysis) -> None:
    plan = RunPlan(tokens=10**12, gpus=("H800",))
    without = analyze("deepseek_v3", Setup(sequence_length=4096, mtp=False), step=False)
    on, off = (plan_run(analysis, plan) for analysis in (deepseek, without))
    assert (on.mtp_trained, off.mtp_trained) == (True, False)
    assert on.training_flops - off.training_flops == Fraction(3 * 14_602_351_935_488, 4096) * 10**12
    assert on.model_state_bytes - off.model_state_bytes == 16 * 11_610_067_968


@pytest.mark.parametrize(
    ("precision", "optimizer", "per_parameter"),
    [("mixed", "adamw", 16), ("mixed-fp32-gradients", "adamw", 18), ("bf16", "sgd", 4), ("fp32", "sgd-momentum", 12)],
)
def test_model_states(precision: str, optimizer: str, per_parameter: int) -> None:
    llama = analyze("llama_7b", Setup(precision=precision, optimizer=optimizer), step=False)
    assert model_state_bytes(llama) == per_parameter * 6_738_415_616


def test_model_states_by_shape() -> None:
    """Muon has one moment for Llama-7B's matrices and two for the rest; Adafactor a number for each row and column."""
    layer, norms, vocabulary = 4 * 4096 * 4096 + 3 * 4096 * 11008, 65 * 4096, 2 * 32000 * 4096
    factored = 32 * (4 * 8192 + 3 * 15104) + norms + 2 * 36096
    for optimizer, moments in (("muon", 32 * layer + 2 * (norms + vocabulary)), ("adafactor", factored)):
        llama = analyze("llama_7b", Setup(precision="fp32", optimizer=optimizer), step=False)
        assert llama.parameters.total == 32 * layer + norms + vocabulary
        assert model_state_bytes(llama) == 8 * llama.parameters.total + 4 * moments


def test_fp8_leaves_embedding_head_router_norms_and_mtp_s_projection_as_they_are() -> None:
    setup = Setup(sequence_length=4096, precision="fp8")
    states = model_state_bytes(analyze("deepseek_v3", setup, step=False))
    main_model = 2 * 926_679_040 + 106_430_464 + 1_006_592
    # router, the layer's norms, three of its own, the projection
    prediction = 1_835_008 + 16_384 + 3 * 7_168 + 2 * 7_168**2
    assert states == 13 * (671_026_404_352 + 11_610_067_968) + main_model + prediction
    without = analyze("deepseek_v3", msgspec.structs.replace(setup, mtp=False), step=False)
    assert model_state_bytes(without) == 13 * 671_026_404_352 + main_model


def test_fewest_gpus_hold_the_states_and_one_less_does_not(deepseek: Analysis) -> None:
    run = plan_run(deepseek, RunPlan(tokens=1, gpus=("H100", "B200")))
    assert run.model_state_bytes == 16 * (671_026_404_352 + 11_610_067_968)
    for gpu in run.gpus:
        capacity = find_gpu(gpu.gpu).capacity_bytes
        assert (gpu.fewest_gpus - 1) * capacity < run.model_state_bytes <= gpu.fewest_gpus * capacity
    assert [gpu.fewest_gpus for gpu in run.gpus] == [129, 58]


def test_gpus_that_are_exactly_full(llama: Analysis) -> None:
    """16 bytes for each of 5,308,284,928 parameters are what an H100's driver reports, to the last byte."""
    for more, gpus in ((-1, 1), (0, 1), (1, 2)):
        total = 5_308_284_928 + more
        parameters = msgspec.structs.replace(llama.parameters, total=total, moment_bytes=8 * total)
        run = plan_run(msgspec.structs.replace(llama, parameters=parameters), RunPlan(tokens=1, gpus=("H100",)))
        assert run.gpus[0].fewest_gpus == gpus


def test_what_the_fewest_gpus_leave_out(llama: Analysis) -> None:
    """Nothing is said without a measured step; with one, what its worst moment holds beside the states."""
    plan = RunPlan(tokens=1, gpus=("H100",))
    assert plan_run(llama, plan).beside_states_bytes is None
    spec = spec_from_fields(LLAMA, "shrunken")
    for loss_chunk in (None, 16):
        analysis = analyze(spec, Setup(sequence_length=64, loss_chunk=loss_chunk))
        assert analysis.memory is not None
        beside = plan_run(analysis, plan).beside_states_bytes
        assert beside == max(
            phase.peak_bytes - phase.parameters - phase.gradients - phase.optimizer_state
            for phase in analysis.memory.phases
            if phase.name != "optimiser step"
        )
        assert beside is not None
        assert beside > 0


def test_what_an_update_allocates_is_not_beside_the_states() -> None:
    """It is divided over GPUs as the states are; only the states themselves grow with the optimiser."""
    plan, spec = RunPlan(tokens=1, gpus=("H100",)), spec_from_fields(LLAMA, "shrunken")
    setups = [Setup(sequence_length=4, optimizer=name, clip_gradients=True) for name in ("adamw", "adamw-foreach")]
    one, other = (plan_run(analyze(spec, setup), plan) for setup in setups)
    assert one.beside_states_bytes == other.beside_states_bytes
    assert one.model_state_bytes == other.model_state_bytes


def test_a_gpu_of_one_s_own(llama: Analysis) -> None:
    """Twice an H100, under another name: half its hours."""
    h100 = find_gpu("H100")
    own = msgspec.structs.replace(h100, name="Mine", peak_dense_tflop_per_s=2 * h100.peak_dense_tflop_per_s)
    run = plan_run(llama, RunPlan(tokens=10**12, gpus=("H100", own), prices_usd_per_hour={"mine": 5.0}))
    theirs, ours = run.gpus
    assert (ours.gpu, ours.price_usd_per_hour) == ("Mine", 5)
    assert [outcome.gpu_hours * 2 for outcome in ours.outcomes] == [outcome.gpu_hours for outcome in theirs.outcomes]


def test_attention_s_share(llama: Analysis, deepseek: Analysis) -> None:
    """4 S D of 32 layers of the FLOPs per token of Llama-7B."""
    plan = RunPlan(tokens=1, gpus=("H100",))
    assert plan_run(llama, plan).attention_core_share == 32 * 4 * 2048 * 4096 * 2048 / 29_261_612_187_648
    core = 2 * 128 * 4096 * 4096 * (192 + 128) * 61
    assert plan_run(deepseek, plan).attention_core_share == core / 383_866_460_176_384
    mistral = analyze("mistral_7b", Setup(sequence_length=8192), step=False)  # beyond its window of 4,096
    assert plan_run(mistral, plan).attention_core_share == 32 * 4 * 8192 * 4096 * 4096 / mistral.forward_flops


def test_a_batch_from_one_sequence_to_all_tokens(llama: Analysis) -> None:
    plan = RunPlan(tokens=8192, gpus=("H100",))
    for number, steps in ((2, 2), (3, 2), (4, 1)):
        assert plan_run(with_micro_batches(llama, number), plan).steps == steps
    of_one = plan_run(llama, plan)  # a step of one sequence is nobody's choice
    assert (of_one.global_batch_tokens, of_one.steps) == (None, None)
    with pytest.raises(UserError, match=r"^tokens = 8192: must be at least those of one step, 10240$"):
        plan_run(with_micro_batches(llama, 5), plan)
    assert plan_run(llama, RunPlan(tokens=11, gpus=("H100",))).tokens == 11


def test_lossless_to_json(deepseek: Analysis) -> None:
    plan = RunPlan(tokens=148 * 10**11, gpus=("H800", "H100"), gpu_hours=2_664_000)
    run = plan_run(with_micro_batches(deepseek, 15_360), plan)
    text = msgspec.json.encode(run)
    assert msgspec.json.decode(text, type=TrainingRun) == run
    assert isinstance(json.loads(text)["training_flops"], int)


# --- What the user can mend ------------------------------------------------------------------------------------


def test_more_flops_than_the_gpus_can_do_is_an_impossible_claim(llama: Analysis) -> None:
    plan = RunPlan(tokens=10**12, gpus=("A100",), gpu_hours=30_000)
    with pytest.raises(
        UserError,
        match=r"gpu_hours = 30000: the claim is impossible: .* \(6N_causal_attention at 2,048 .*MFU of 1\.2",
    ):
        plan_run(llama, plan)


def test_a_speed_above_the_peak_is_refused(llama: Analysis) -> None:
    """An A100's 312 TFLOP/s are 7,562.8 tokens a second of 41,254,674,432 FLOPs each.

    6 for each of 6,607,343,616 parameters but the embedding, and 3 x 32 layers x 4 x 2048 x 4096, halved.
    """
    plan = RunPlan(tokens=10**12, gpus=("A100",), tokens_per_second_per_gpu=7_562.0)
    assert plan_run(llama, plan).gpus[0].implied_mfu[2].mfu < 1
    with pytest.raises(
        UserError,
        match=r"^tokens_per_second_per_gpu = 7563: the claim is impossible: .* \(6N_causal_attention at 2,048 .* 1$",
    ):
        plan_run(llama, msgspec.structs.replace(plan, tokens_per_second_per_gpu=7_563.0))


def test_what_only_another_length_makes_possible(llama: Analysis) -> None:
    """At 131,072 tokens half of attention's square alone is more than twice what the matrices take."""
    plan = RunPlan(tokens=10**12, gpus=("H100",), tokens_per_second_per_gpu=12_000)
    assert plan_run(llama, plan).gpus[0].implied_mfu[2].mfu == pytest.approx(0.5006, abs=1e-4)
    long = analyze("llama_7b", Setup(sequence_length=131_072), step=False)
    with pytest.raises(UserError, match=r"an MFU of 1\.732, above 1; if it trained in FP8, say so"):
        plan_run(long, plan)


def test_an_fp8_run_is_held_against_the_fp8_peak(llama: Analysis) -> None:
    plan = RunPlan(tokens=10**12, gpus=("H100",), gpu_hours=8_000)
    with pytest.raises(
        UserError, match=r"dense bfloat16 peak is 989: .*; if it trained in FP8, say so \(precision fp8\)$"
    ):
        plan_run(llama, plan)
    in_fp8 = analyze("llama_7b", Setup(precision="fp8"), step=False)
    assert plan_run(in_fp8, plan).gpus[0].implied_mfu[0].mfu > 1
    with pytest.raises(
        UserError,
        match=r"dense fp8 peak is 1,979: an MFU of [\d.]+, above 1$",
    ):
        plan_run(in_fp8, msgspec.structs.replace(plan, gpu_hours=4_000))
    on_a100 = msgspec.structs.replace(plan, gpus=("A100",))  # which has no FP8
    with pytest.raises(UserError, match=r"dense bfloat16 peak is 312: an MFU of [\d.]+, above 1$"):
        plan_run(in_fp8, on_a100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpus": ("K80",)}, "^gpus = 'K80': is not known"),
        ({"gpus": ("H100", "H100")}, "names H100 twice"),
        ({"gpus": ()}, "name at least one GPU"),
        ({"gpus": ("L4",)}, "^prices_usd_per_hour = 'L4': no price is known for L4: give one in US dollars per hour$"),
        ({"mfus": 0.4}, r"^mfu = 0\.4: must be a tuple of utilisations"),
        ({"gpu_hours": "5"}, "^gpu_hours = '5': must be a number of hours above 0$"),
        ({"gpu_hours": True}, "^gpu_hours = true: must be a number of hours above 0$"),
        ({"mfus": (1.5,)}, r"mfu = 1\.5: must be a number from 1e-06 to 1"),
        ({"tokens": 0}, "^tokens = 0: must be a whole number, at least 1$"),
        ({"tokens": None}, "^tokens = null: must be a whole number, at least 1$"),
        ({"tokens": 1e12}, r"^tokens = 1000000000000\.0: must be a whole number, at least 1$"),
        ({"num_gpus": 0}, "^num_gpus = 0: must be a whole number, at least 1$"),
        ({"mfus": ()}, "^mfu = '': give at least one utilisation"),
        ({"gpu_hours": 0.0}, r"^gpu_hours = 0\.0: must be a number of hours above 0$"),
        ({"gpu_hours": float("nan")}, "^gpu_hours = nan: must be a number of hours above 0$"),
        (
            {"tokens_per_second_per_gpu": 0},
            "^tokens_per_second_per_gpu = 0: must be a number of tokens per second above",
        ),
        ({"tokens_per_second_per_gpu": float("inf")}, "^tokens_per_second_per_gpu = inf: must be a number"),
        ({"tokens_per_second_per_gpu": True}, "^tokens_per_second_per_gpu = true: must be a number"),
        ({"tokens_per_second_per_gpu": "1"}, "^tokens_per_second_per_gpu = '1': must be a number"),
        (
            {"tokens_per_second_per_gpu": 5, "mfus": (0.4,)},
            "^tokens_per_second_per_gpu = 5: a speed determines the utilisation: leave out mfu$",
        ),
        (
            {"tokens_per_second_per_gpu": 5, "gpu_hours": 5.0},
            "^tokens_per_second_per_gpu = 5: a speed determines the hours: leave out gpu_hours$",
        ),
        ({"gpu_hours": 5.0, "mfus": (0.4,)}, r"^gpu_hours = 5\.0: hours determine the utilisation"),
    ],
)
def test_refused(change: dict[str, object], message: str, llama: Analysis) -> None:
    with pytest.raises(UserError, match=message):
        plan_run(llama, msgspec.structs.replace(RunPlan(tokens=10, gpus=("H100",)), **change))
