"""How long a step takes, on the first screen, in the tables and in a run; the times are made by hand."""

import msgspec
import pytest

from counting.analysis import Analysis, analyze
from counting.cost.fits import fits_on
from counting.cost.hardware import find_gpu
from counting.cost.run import RunPlan, plan_run
from counting.report import Results
from counting.report.details.run import run_parts
from counting.report.format import readable_seconds
from counting.report.model.step_time import time_notes, time_table
from counting.report.printing import print_parts
from counting.report.screen.time import times_in_words
from counting.setup import Setup
from counting.step.time import NO_TIME_BY_FORMULA, NotTimed, StepTime
from tests.counting.spread import rank_class, spread
from tests.counting.times import TIME, step_time_like
from tests.screens import printed, words
from torch_models.layout import Layout

OTHER = step_time_like(
    gpu="RTX-Pro",
    rates_of="L40S",
    seconds=0.945,
    bound_seconds=0.5,
    low_seconds=0.945,
    high_seconds=0.945,
    tokens_per_second_per_gpu=469.2,
    mfu=0.0734,
)
LAYOUT = Layout(num_gpus=64, gpus_per_node=8, dp=2, fsdp=4, tp=8)


@pytest.fixture(scope="module")
def llama() -> Analysis:
    return analyze("llama_7b", Setup(micro_batches=2))


def spread_and_timed(llama: Analysis, *times: msgspec.Struct) -> Analysis:
    return msgspec.structs.replace(spread(llama, LAYOUT, rank_class(10**9, count=64)), step_time=times)


def test_one_line_for_each_gpu(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, Results(analyses=[spread_and_timed(llama, TIME, OTHER)])).splitlines()
    start = lines.index("A training step of llama_7b, spread over 64 GPUs")
    assert lines[start + 1 : start + 5] == [
        "  H100: 18 s a step, 8.9 k tokens/s a GPU, MFU 40 % (36–45); not below 15 s",  # noqa: RUF001
        "  RTX-Pro: 945 ms a step, 469 tokens/s a GPU, MFU 7 %; not below 500 ms",
        "  rates           none are known of it: RTX-Pro has those of L40S, scaled",
        "  a step          estimate, op by op; in brackets its errors on published runs",
    ]


def test_what_the_figures_rest_on(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    compiled = msgspec.structs.replace(llama, setup=msgspec.structs.replace(llama.setup, execution="compiled"))
    for analysis, time, basis in (
        (llama, step_time_like(basis="calibrated"), "a step calibrated by measured steps, whose spread is in brackets"),
        (compiled, OTHER, "a step estimate, compiled, from sourced rates"),
    ):
        assert basis in words(printed(capsys, Results(analyses=[spread_and_timed(analysis, time)])))


def test_why_there_is_no_time(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    reasons = {"T4": "has no rates", "L4": "no link: give one", "V100": "has no rates"}
    not_timed = tuple(NotTimed(gpu=gpu, reason=reason) for gpu, reason in reasons.items())
    timed = msgspec.structs.replace(spread_and_timed(llama), step_time=None)
    analysis = msgspec.structs.replace(timed, not_timed=not_timed)
    screen = words(printed(capsys, Results(analyses=[analysis])))
    assert " no time T4, V100: has no rates; L4: no link: give one the worst rank" in screen
    assert " a step " not in screen.partition("no time")[0]
    assert time_notes((), not_timed[1:2]) == ["How long a step takes is not worked out on L4: no link: give one."]
    megatron = msgspec.structs.replace(timed, step_time=(), notes=(NO_TIME_BY_FORMULA,))
    assert "no time by Megatron-LM's rules no step is run" in words(printed(capsys, Results(analyses=[megatron])))


def test_no_line_where_no_time_was_asked_for(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    screen = printed(capsys, Results(analyses=[spread(llama, LAYOUT, rank_class(10**9, count=64))]))
    assert "a GPU, MFU" not in screen
    assert "no time" not in screen


def test_a_predicted_run(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    analysis = spread_and_timed(llama, TIME)
    one = [plan_run(analysis, RunPlan(tokens=10**12, gpus=("H100",)))]
    lines = printed(capsys, Results(analyses=[analysis], runs=one)).splitlines()
    start = lines.index("Training llama_7b on 1 T tokens with 64 GPUs at 40 % (36–45) MFU, predicted")  # noqa: RUF001
    assert lines[start + 1 : start + 4] == [
        "  GPU   $/hour  GPU-hours  days     cost",
        "  H100    3.00     30,098  19.6  $90,293",
        "  by its band     H100: 26,753–33,442 GPU-hours, $80,260–100,325",  # noqa: RUF001
    ]
    two = [plan_run(analysis, RunPlan(tokens=10**12, gpus=("H100", "A100")))]
    lines = printed(capsys, Results(analyses=[analysis], runs=two)).splitlines()
    start = lines.index("Training llama_7b on 1 T tokens with 64 GPUs at the MFU predicted for each")
    assert [line.split()[:2] for line in lines[start + 2 : start + 4]] == [["H100", "40"], ["A100", "30–50"]]  # noqa: RUF001
    assert "30–50 %, assumed" in lines[start + 3]  # noqa: RUF001
    print_parts(run_parts(two[0]))
    assert "predicted" in capsys.readouterr().out


def test_a_claim_is_held_against_what_is_predicted(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    """10,500 tokens/s of 42.86 GFLOP each are 45.5 % of 989 TFLOP/s: below the bound's 48 %, above the band."""
    plan = RunPlan(tokens=10**12, gpus=("H100",), tokens_per_second_per_gpu=10_500)
    verdict = "by its own count it is above the 36 % to 45 % MFU that is predicted for this layout"
    analysis = spread_and_timed(llama, TIME)
    screen = words(printed(capsys, Results(analyses=[analysis], runs=[plan_run(analysis, plan)])))
    assert "is it possible not excluded: the fewest FLOPs" in screen
    assert verdict in screen
    slower = plan_run(analysis, msgspec.structs.replace(plan, tokens_per_second_per_gpu=9_000))
    screen = words(printed(capsys, Results(analyses=[analysis], runs=[slower])))
    assert "is it possible yes" in screen
    assert verdict.replace("above", "within") in screen


def test_the_rows_of_the_table_sum_to_the_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    print_parts([time_table([TIME, OTHER])])
    rows = {}
    for line in capsys.readouterr().out.splitlines():
        cells = [cell.strip() for cell in line.replace("│", "|").split("|")[1:-1]]
        if len(cells) == 3:
            rows[cells[0]] = cells[1:]
    parts = [
        "products",
        "attention",
        "ops by their bytes, launches",
        "waiting for other stages",
        "optimiser",
        "exposed, tp",
        "exposed, fsdp",
    ]
    assert sum(float(rows[part][0]) for part in parts) == float(rows["the step"][0]) == 18
    assert rows["the bound"] == ["15.0000", "0.5000"]
    assert rows["tokens/s a GPU"] == ["8,900", "469"]
    assert rows["MFU"] == ["40.0 %", "7.3 %"]
    assert rows["rates of"] == ["H100", "L40S"]


def test_each_assumption_stands_once() -> None:
    times = [step_time_like(assumptions=("One.", "Both.")), step_time_like(gpu="A100", assumptions=("Both.",))]
    assert time_notes(times) == ["Time of a step on H100: One.", "Time of a step: Both."]


# --- One screen ------------------------------------------------------------------------------------------------------

FSDP = Layout(num_gpus=8, gpus_per_node=8, dp=1, fsdp=8)
LACKS = NotTimed(gpu="T4", reason="no rates are known", remedy='give "rates" in a file')


def times_on(*gpus: str) -> list[StepTime]:
    return [step_time_like(gpu=gpu, rates_of=gpu, tokens_per_second_per_gpu=42_123.0) for gpu in gpus]


def planned(analysis: Analysis, *gpus: str) -> Results:
    """A run of `analysis`, spread over 8 ranks, on `gpus`, of which a T4 is not timed."""
    timed = [gpu for gpu in gpus if gpu != "T4"]
    spread_out = msgspec.structs.replace(
        spread(analysis, FSDP, rank_class(54 * 10**9, count=8)),
        step_time=tuple(times_on(*timed)),
        not_timed=(LACKS,) if "T4" in gpus else (),
    )
    spread_out = msgspec.structs.replace(spread_out, fits=fits_on(spread_out, [find_gpu(gpu) for gpu in gpus]))
    return Results(analyses=[spread_out], runs=[plan_run(spread_out, RunPlan(tokens=10**12, gpus=gpus))])


@pytest.mark.parametrize(
    ("gpus", "width"),
    [
        (("H100", "B200", "A100", "T4"), 80),
        (("V100", "T4", "A100", "H100", "H800", "H200", "B200"), 80),
        (("H100", "B200"), 60),
        (("H100", "B200", "A100", "T4"), 60),
    ],
)
def test_each_gpu_has_its_time_on_one_screen(
    gpus: tuple[str, ...], width: int, llama: Analysis, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line each, and whether it fits is said of at least one."""
    lines = printed(capsys, planned(llama, *gpus), width=width).splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= width
    for gpu in gpus:
        assert sum(line.startswith(f"  {gpu}: 18 s a step") for line in lines) == (gpu != "T4")
    assert sum("MFU 40 % (36–45)" in line and "15 s" in line for line in lines) == len(gpus) - ("T4" in gpus)  # noqa: RUF001
    assert "fits" in lines[5 if width == 80 else 6]


def test_a_line_that_is_too_long_has_fewer_words(llama: Analysis) -> None:
    times = times_on("H100", "A100")
    forms = [times_in_words(times, width) for width in (78, 70, 58)]
    assert [form[1] for form in forms] == [
        "A100: 18 s a step, 42.1 k tokens/s a GPU, MFU 40 % (36–45); not below 15 s",  # noqa: RUF001
        "A100: 18 s a step, 42.1 k tokens/s, MFU 40 % (36–45); not below 15 s",  # noqa: RUF001
        "A100: 18 s a step, MFU 40 % (36–45); bound 15 s",  # noqa: RUF001
    ]


@pytest.mark.parametrize("gpus", [("H100", "T4"), ("H100", "B200", "A100", "T4")])
def test_times_of_several_models_are_a_table(
    gpus: tuple[str, ...], llama: Analysis, capsys: pytest.CaptureFixture[str]
) -> None:
    """Above their runs, with all that has no time."""
    one = planned(llama, *gpus)
    lines = printed(capsys, Results(analyses=one.analyses * 3, runs=one.runs * 3)).splitlines()
    assert len(lines) <= 50
    start = lines.index("How long does a training step take? Tokens/s of one GPU:")
    rows = [f"{gpu} 18 s 42.1 k 40 % (36–45) 15 s yes" for gpu in gpus[:-1]]  # noqa: RUF001
    shown = [words(line) for line in lines[start + 2 : start + 2 + 3 * len(rows)]]
    assert shown == [f"llama_7b {rows[0]}", *rows[1:]] * 3
    assert "no time T4: no rates are known" in words("\n".join(lines[:30]))
    assert any(line.startswith("Training each model") for line in lines[:30])


def test_what_runs_as_fast_as_products_is_said(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    times = [step_time_like(gpu=gpu, rates_of=gpu, as_products=("attention",)) for gpu in ("L4", "L40S")]
    said = words(printed(capsys, Results(analyses=[spread_and_timed(llama, TIME, *times)])))
    assert "too fast attention on L4 and L40S, no rates are known: as fast as large products" in said
    experts = step_time_like(as_products=("experts",))
    assert "products of experts on H100" in words(printed(capsys, Results(analyses=[spread_and_timed(llama, experts)])))
    assert "too fast" not in printed(capsys, Results(analyses=[spread_and_timed(llama, TIME)]))


def test_what_to_give_where_there_is_no_time(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    both = (LACKS, msgspec.structs.replace(LACKS, gpu="V100"))
    analysis = msgspec.structs.replace(spread_and_timed(llama), step_time=None, not_timed=both)
    assert 'T4, V100: no rates are known: give "rates" in a file' in words(
        printed(capsys, Results(analyses=[analysis]))
    )
    assert time_notes((), both[:1]) == [
        'How long a step takes is not worked out on T4: no rates are known: give "rates" in a file.'
    ]


def test_a_run_of_steps_that_do_not_fit_is_said(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    results = planned(llama, "H100", "A100", "V100")
    assert [gpu.step_fits for gpu in results.runs[0].gpus] == [True, True, False]
    assert "does not fit V100: no such run is possible" in words(printed(capsys, results))
    print_parts(run_parts(results.runs[0]))
    assert "does not fit V100 as it is: no such run is possible" in words(capsys.readouterr().out)
    several = Results(analyses=results.analyses * 2, runs=results.runs * 2)
    assert "does not fit llama_7b, llama_7b on V100: no such" in words(printed(capsys, several))
    assert plan_run(llama, RunPlan(tokens=10**9, gpus=("V100",))).gpus[0].step_fits is None, "without a layout"


def test_seconds_have_a_unit() -> None:
    assert [readable_seconds(seconds) for seconds in (18.23, 0.195, 4.84e-7, 4.84e-10)] == [
        "18.2 s",
        "195 ms",
        "484 ns",
        "0.484 ns",
    ]
