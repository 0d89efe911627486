"""A run whose layout is given: its utilisation is predicted by how long a step takes."""

from fractions import Fraction
from math import ceil, floor

import msgspec
import pytest

from counting.analysis import Analysis, analyze
from counting.cost.fits import fits_on
from counting.cost.hardware import find_gpu
from counting.cost.run import RunPlan, plan_run
from counting.report.screen.lines import Lines
from counting.report.screen.run import run_screen
from counting.step.time import StepTime
from tests.counting.batches import with_micro_batches
from tests.counting.spread import rank_class, spread
from tests.counting.times import TIME, step_time_like
from torch_models.errors import UserError
from torch_models.layout import Layout

LLAMA_FLOPS = Fraction(3 * 29_261_612_187_648, 2048)  # per token, at sequence length 2048
LAYOUT = Layout(num_gpus=64, gpus_per_node=8, dp=2, fsdp=4, tp=8)


@pytest.fixture(scope="module")
def llama() -> Analysis:
    return analyze("llama_7b", step=False)


def timed(llama: Analysis, *times: StepTime) -> Analysis:
    analysis = spread(with_micro_batches(llama, 3), LAYOUT, rank_class(10**9, count=64))
    return msgspec.structs.replace(analysis, step_time=times)


def test_a_predicted_run_by_hand(llama: Analysis) -> None:
    """MFU 0.4 at 18 s; the band of 16 to 20 s is 0.45 to 0.36."""
    run = plan_run(timed(llama, TIME), RunPlan(tokens=10**12, gpus=("H100",)))
    (on_gpu,) = run.gpus
    slow, predicted, fast = on_gpu.outcomes
    assert {outcome.mfu_source for outcome in on_gpu.outcomes} == {"predicted"}
    assert [outcome.mfu for outcome in on_gpu.outcomes] == pytest.approx([0.36, 0.4, 0.45], rel=1e-12)
    assert (predicted.mfu, on_gpu.num_gpus) == (0.4, 64)
    hours = LLAMA_FLOPS * 10**12 / (989 * 10**12 * Fraction(2, 5) * 3600)
    assert predicted.gpu_hours == float(hours)
    assert predicted.days == float(hours / 64 / 24)
    assert slow.gpu_hours > predicted.gpu_hours > fast.gpu_hours
    assert slow.gpu_hours == pytest.approx(float(hours) * 20 / 18, rel=1e-12)


def test_a_band_without_width_is_one_outcome(llama: Analysis) -> None:
    (on_gpu,) = plan_run(
        timed(llama, step_time_like(low_seconds=18.0, high_seconds=18.0)), RunPlan(tokens=10**12, gpus=("H100",))
    ).gpus
    assert [(outcome.mfu, outcome.mfu_source) for outcome in on_gpu.outcomes] == [(0.4, "predicted")]


def test_where_the_utilisation_comes_from_if_a_step_was_timed(llama: Analysis) -> None:
    """What is given wins; a GPU on which the step was not timed has what is assumed, as has a step on one device."""
    analysis, plan = timed(llama, TIME), RunPlan(tokens=10**12, gpus=("H100", "A100"))
    sources = [gpu.outcomes[0].mfu_source for gpu in plan_run(analysis, plan).gpus]
    assert sources == ["predicted", "assumed"]
    given = plan_run(analysis, msgspec.structs.replace(plan, mfus=(0.48,)))
    assert [gpu.outcomes[0].mfu_source for gpu in given.gpus] == ["given", "given"]
    of_hours = plan_run(analysis, msgspec.structs.replace(plan, gpus=("H100",), gpu_hours=10**6))
    assert of_hours.gpus[0].outcomes[0].mfu_source == "given"
    one_device = msgspec.structs.replace(llama, step_time=(TIME,))
    assert plan_run(one_device, plan).gpus[0].outcomes[0].mfu_source == "assumed"


def test_no_utilisation_above_that_of_the_bound(llama: Analysis) -> None:
    plan = RunPlan(tokens=10**12, gpus=("H100",), mfus=(0.4801,))
    error = (
        "mfu = 0.4801: no run of this layout on H100 is above 0.48, the utilisation of the bound, 15 s a step: give at "
        "most that"
    )
    with pytest.raises(UserError) as caught:
        plan_run(timed(llama, TIME), plan)
    assert str(caught.value) == error
    assert plan_run(timed(llama, TIME), msgspec.structs.replace(plan, mfus=(0.48,)))
    assert plan_run(timed(llama, TIME), msgspec.structs.replace(plan, gpus=("A100",))), "its step was not timed"


def test_no_speed_above_that_of_the_bound(llama: Analysis) -> None:
    """At MFU 0.48, 0.48 x 989e12 FLOP/s / 42,863,690,509 FLOPs a token = 11,075.1 tokens a second of each GPU.

    10^12 tokens take 10^12 / 11,075.1 / 3600 = 25,081.3 hours. A token has 3 x 29,261,612,187,648 / 2048 FLOPs.
    """
    plan = RunPlan(tokens=10**12, gpus=("H100",))
    fastest = Fraction(48, 100) * 989 * 10**12 / LLAMA_FLOPS
    assert (float(fastest), 10**12 / float(fastest) / 3600) == pytest.approx((11_075.1, 25_081.3), abs=0.1)
    analysis, most, fewest = timed(llama, TIME), floor(fastest * 100) / 100, ceil(10**14 / fastest / 3600) / 100
    speed, hours = (
        msgspec.structs.replace(plan, tokens_per_second_per_gpu=most),
        msgspec.structs.replace(plan, gpu_hours=fewest),
    )
    for claim in (speed, hours):
        (on_gpu,) = plan_run(analysis, claim).gpus
        assert on_gpu.outcomes[0].mfu == pytest.approx(0.48, rel=1e-5)
        assert on_gpu.predicted_mfus == pytest.approx([0.36, 0.4, 0.45], rel=1e-12)
    with pytest.raises(UserError) as caught:
        plan_run(analysis, msgspec.structs.replace(speed, tokens_per_second_per_gpu=11_500.0))
    assert str(caught.value) == (
        f"tokens_per_second_per_gpu = 11500: no run of this layout on H100 is faster than {most}, the speed of the "
        "bound, 15 s a step: give at most that"
    )
    with pytest.raises(UserError) as caught:
        plan_run(analysis, msgspec.structs.replace(hours, gpu_hours=25_000))
    assert str(caught.value) == (
        f"gpu_hours = 25000: no run of this layout on H100 takes fewer than {fewest}, those of the bound, 15 s a step: "
        "give at least that"
    )
    untimed = plan_run(timed(llama), msgspec.structs.replace(speed, tokens_per_second_per_gpu=11_500.0))
    assert untimed.gpus[0].predicted_mfus == ()


def test_the_energy_of_a_run_is_that_of_the_limit_that_is_set(llama: Analysis) -> None:
    """Half of the board's 700 W for as many hours."""
    plan = RunPlan(tokens=10**12, gpus=("H100",))
    (full,) = plan_run(timed(llama, TIME), plan).gpus
    (half,) = plan_run(timed(llama, step_time_like(power_limit_watts=350.0)), plan).gpus
    assert (full.power_watts, half.power_watts) == (700, 350)
    for at_full, at_half in zip(full.outcomes, half.outcomes, strict=True):
        assert at_full.energy_mwh == pytest.approx(at_full.gpu_hours * 700 / 1e6, rel=1e-12)
        assert at_half.energy_mwh == pytest.approx(at_full.energy_mwh / 2, rel=1e-12)


@pytest.mark.parametrize(("needed", "fits"), [(9 * 10**9, True), (10**12, False)])
def test_a_run_says_whether_its_step_fits(llama: Analysis, needed: int, fits: bool) -> None:
    analysis, plan = timed(llama, TIME), RunPlan(tokens=10**12, gpus=("H100",))
    assert plan_run(analysis, plan).gpus[0].step_fits is None
    fit = msgspec.structs.replace(fits_on(analysis, [find_gpu("H100")])[0], needed_bytes=needed, fits=fits)
    analysis = msgspec.structs.replace(analysis, fits=(fit,))
    run = plan_run(analysis, plan)
    assert run.gpus[0].step_fits is fits
    lines = Lines(100)
    run_screen(lines, [run], 1)
    assert ("of a step that does not fit: H100" in " ".join(lines.lines)) is not fits
    on_one_device = msgspec.structs.replace(analysis, layout=None)
    assert plan_run(on_one_device, plan).gpus[0].step_fits is None


def test_the_gpus_of_a_run_are_those_of_the_layout(llama: Analysis) -> None:
    plan = RunPlan(tokens=10**12, gpus=("H100",), num_gpus=64)
    assert plan_run(timed(llama), plan).gpus[0].num_gpus == 64
    with pytest.raises(UserError, match="num_gpus = 32: is not the number of ranks of the layout, 64: leave it out"):
        plan_run(timed(llama), msgspec.structs.replace(plan, num_gpus=32))
