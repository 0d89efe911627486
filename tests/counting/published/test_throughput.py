import json
from fractions import Fraction
from functools import cache
from pathlib import Path

import msgspec
import pytest

from counting.analysis import analyze
from counting.command.main import main
from counting.cost.cluster import Cluster
from counting.cost.hardware import find_gpu
from counting.cost.step_time.band import errors_of
from counting.published import throughput
from counting.published.rows import RunSettings
from counting.published.throughput import (
    ExaminedRatio,
    ExaminedThroughput,
    MeasuredSpeed,
    ModelKind,
    PublishedCluster,
    PublishedRatio,
    PublishedThroughput,
    Throughput,
    ThroughputRecords,
    beats_bound,
    examine_throughput,
    load_published_throughput,
    measured_seconds,
    summed_up,
    tokens_per_gpu,
)
from counting.report.format import signed_percent
from counting.report.printing import print_parts
from counting.report.published.throughput import published_throughput_parts, seconds, speed_cells
from counting.report.screen.lines import Lines
from counting.report.screen.published import published_throughput_screen
from counting.setup import Setup
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout
from torch_models.spec import MixtureOfExpertsSpec

RECORDS = load_published_throughput()
SMALL = RunSettings(
    config="llama_3_2_1b",
    config_fields={"num_hidden_layers": 2, "vocab_size": 1024},
    setup={"sequence_length": 256, "micro_batch_size": 2, "execution": "compiled"},
    layout={"num_gpus": 2, "fsdp": 2},
)


def row_of(run: RunSettings | None, name: str = "small", **fields: object) -> PublishedThroughput:
    row = PublishedThroughput(
        name=name,
        source="by hand",
        kind="dense",
        gate=True,
        cluster=PublishedCluster(gpu="H100"),
        measured=MeasuredSpeed(quantity="seconds", value=0.5),
        run=run,
        not_run=None if run is not None else "it has no settings",
    )
    return msgspec.structs.replace(row, **fields)


@pytest.fixture(scope="module")
def small() -> ExaminedThroughput:
    return examine_throughput(row_of(SMALL))


# --- The data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", RECORDS.rows, ids=lambda row: row.name)
def test_each_row_has_a_source_and_settings_or_a_reason(row: PublishedThroughput) -> None:
    assert row.source.startswith(("github.com/", "Korthikanti", "DeepSeek-AI", "Dubey"))
    assert isinstance(row.cluster.cluster(), Cluster)
    assert (row.measured.convention is None) == (row.measured.quantity != "tflop_per_second_per_gpu")
    if row.run is None:
        assert row.not_run is not None
        assert not row.gate
        return
    assert row.ran is not None
    spec = spec_from_fields(row.run.fields(), row.name)
    mixture = any(isinstance(layer.feed_forward, MixtureOfExpertsSpec) for layer, _ in spec.layer_groups())
    assert row.kind == ("mixture" if mixture else "dense")
    assert set(row.run.setup) <= {field.name for field in msgspec.structs.fields(Setup)}
    assert set(row.run.layout) <= {field.name for field in msgspec.structs.fields(Layout)}


def test_the_printed_figures() -> None:
    """Those of the gates, typed again from the sources."""
    printed = {row.name: row.measured.value for row in RECORDS.rows if row.gate}
    assert printed == {
        "torchtitan 8B": 5762,
        "torchtitan 8B, compiled": 6667,
        "torchtitan 70B, TP 8": 597.3,
        "torchtitan 70B, async TP 8": 652.4,
        "AutoModel 70B, CP 2": 18.90,
        "AutoModel GPT-OSS 20B": 10.04,
        "AutoModel Qwen3 30B-A3B": 21.773,
        "AutoModel DeepSeek-V3": 8.18,
        "Megatron 22B, TP 8": 1.10,
        "Megatron 175B, TP 8, PP 8": 13.75,
        "Insights DeepSeek-V3, FP8": 19.926,
        "Llama-3 405B, 8,192 GPUs": 430,
        "Llama-3 405B, 16,384 GPUs": 400,
        "Bridge 70B, FP8": 1664,
    }


# Tokens of a step by the source's own global batch, and tokens / s / GPU that it prints beside the seconds.
BESIDE_THE_SECONDS = {
    "AutoModel 70B, CP 2": (128 * 8192, 866.77),
    "AutoModel GPT-OSS 20B": (256 * 4096, 13_058),
    "AutoModel Qwen3 30B-A3B": (512 * 4096, 12_040),
    "AutoModel DeepSeek-V3": (512 * 4096, 1_002),
    "AutoModel GPT-OSS 120B": (512 * 4096, 7_626),
}


@pytest.mark.parametrize("name", BESIDE_THE_SECONDS)
def test_seconds_and_tokens_a_second_of_one_source_agree(name: str) -> None:
    tokens, printed = BESIDE_THE_SECONDS[name]
    row = next(row for row in RECORDS.rows if row.name == name)
    assert row.run is not None
    setup, layout = row.run.setup, row.run.layout
    of_step = layout["fsdp"] * setup["micro_batches"] * setup["micro_batch_size"] * setup["sequence_length"]
    assert of_step == tokens
    assert tokens / layout["num_gpus"] / row.measured.value == pytest.approx(printed, rel=2e-3)


# --- From a printed speed to seconds ----------------------------------------------------------------------------------


def test_seconds_of_a_printed_speed() -> None:
    """3 micro-batches x 2 sequences x 256 tokens x 2 data ranks / (2 data ranks x 2 of cp) = 768 tokens a GPU.

    At 1,000 tokens / s / GPU 0.768 s. Without attention, SmolLM2 has 6 x 134,515,008 parameters = 807,090,048 FLOPs a
    token, so at 10 TFLOP/s 768 x 807,090,048 / 10^13 = 0.0619845 s.
    """
    setup = Setup(sequence_length=256, micro_batch_size=2, micro_batches=3)
    assert tokens_per_gpu(setup, Layout(num_gpus=4, dp=1, fsdp=2, cp=2)) == Fraction(768)

    def of(**fields: object) -> float:
        return measured_seconds(
            msgspec.convert(fields, MeasuredSpeed), Fraction(768), {"6N": Fraction(6 * 134_515_008)}
        )

    assert of(quantity="seconds", value=1.5) == 1.5
    assert of(quantity="tokens_per_second_per_gpu", value=1000) == 0.768
    assert of(quantity="tflop_per_second_per_gpu", value=10, convention="6N") == pytest.approx(0.0619845, rel=1e-6)


# --- Rows by hand -----------------------------------------------------------------------------------------------------


PIPELINE = {"num_gpus": 4, "fsdp": 2, "pp": 2}
ACCUMULATED = {"sequence_length": 256, "micro_batches": 9, "recompute": "full"}
DENSE_GLM_5 = {"num_hidden_layers": 2, "first_k_dense_replace": 2, "vocab_size": 1024, "n_routed_experts": 8}


@pytest.mark.parametrize(
    "run",
    [
        SMALL,
        msgspec.structs.replace(SMALL, setup=ACCUMULATED),
        msgspec.structs.replace(SMALL, setup=ACCUMULATED, layout=PIPELINE, config="llama_3_8b"),
        msgspec.structs.replace(SMALL, config="glm_5", config_fields=DENSE_GLM_5),
    ],
    ids=["one micro-batch", "nine", "pipeline", "an indexer"],
)
def test_a_row_is_run_as_a_user_would_run_it(run: RunSettings) -> None:
    """With FLOPs as executed, too: there they are those of the ranks' analysis, here of the ops."""
    row = examine_throughput(row_of(run))
    layout, cluster = Layout(**run.layout), Cluster(gpu=find_gpu("H100"))
    found = analyze(run.fields(), Setup(**run.setup), layout=layout, cluster=cluster)
    assert found.step_time == (row.step_time,)
    assert row.setup == msgspec.structs.replace(found.setup, measured_dtype=None)
    assert row.layout == found.layout
    assert row.step_time is not None
    assert row.relative_error == row.step_time.seconds / 0.5 - 1


def test_fields_of_a_gpu_and_of_the_stack_are_those_of_the_row() -> None:
    cluster = PublishedCluster(
        gpu="H100",
        gpu_fields={"memory_bandwidth_tb_per_s": 2.4},
        power_watts=500,
        attention_kernel="cuDNN",
        products="fp8",
    ).cluster()
    assert cluster.gpu == msgspec.structs.replace(find_gpu("H100"), memory_bandwidth_tb_per_s=2.4)
    assert (cluster.power_watts, cluster.attention_kernel, cluster.products_in_fp8) == (500, "cuDNN", True)


def test_a_setting_that_is_refused_is_the_reason() -> None:
    refused = msgspec.structs.replace(SMALL, setup={"sequence_length": 256, "kernels": "magic"})
    found = examine_throughput(row_of(refused))
    assert (found.step_time, found.setup, found.relative_error) == (None, None, None)
    assert found.not_run is not None
    assert "magic" in found.not_run


def by_hand(name: str, error: float, small: ExaminedThroughput, **fields: object) -> ExaminedThroughput:
    """A row whose estimate is 1 + error seconds of 1 measured."""
    assert small.step_time is not None
    time = msgspec.structs.replace(small.step_time, seconds=1 + error, bound_seconds=0.9)
    row = msgspec.structs.replace(small, name=name, step_time=time, measured_seconds=1.0, relative_error=error)
    return msgspec.structs.replace(row, **fields)


def test_errors_and_ratios_are_summed_up(small: ExaminedThroughput, monkeypatch: pytest.MonkeyPatch) -> None:
    ratio = PublishedRatio(name="b / a", faster="a", slower="b", gate=True)
    records = ThroughputRecords(rows=(), ratios=(ratio, msgspec.structs.replace(ratio, name="none", slower="z")))
    monkeypatch.setattr(throughput, "load_published_throughput", lambda: records)
    not_run = examine_throughput(row_of(None, "d"))
    found = summed_up(
        [
            by_hand("a", -0.3, small),
            by_hand("b", 0.1, small, measured_seconds=2.0),
            by_hand("c", 0.2, small, gate=False, measured_seconds=0.8),
            not_run,
        ]
    )
    assert [(each.kind, each.gate, each.rows) for each in found.errors] == [
        ("dense", True, 2),
        ("all", True, 2),
        ("dense", False, 3),
        ("all", False, 3),
    ]
    gated, rest = found.errors[0], found.errors[-1]
    assert gated.median_absolute == pytest.approx(0.2)
    assert gated.median == pytest.approx(-0.1)
    assert (gated.worst, gated.worst_error, gated.beyond_bound) == ("a", -0.3, ())
    # Inclusive percentiles of two values: a tenth of the way from each to the other.
    assert gated.tenth == pytest.approx(-0.26)
    assert gated.ninetieth == pytest.approx(0.06)
    assert rest.median == pytest.approx(0.1)
    assert rest.beyond_bound == ("c",)  # measured 0.8 s, bound 0.9 s
    # Equal steps: b measured twice as long as a; estimated 1.1 / 0.7 s.
    (only,) = found.ratios
    assert only.measured == pytest.approx(2.0)
    assert only.estimated == pytest.approx(1.1 / 0.7)
    assert only.relative_error == pytest.approx(1.1 / 0.7 / 2 - 1)


def test_reports(small: ExaminedThroughput, capsys: pytest.CaptureFixture[str]) -> None:
    noted = msgspec.structs.replace(small, ran="what ran", differs="what is off")
    kept = msgspec.structs.replace(noted, name="kept", gate=False)
    examined = summed_up([noted, kept, examine_throughput(row_of(None, "other"))])
    print_parts(published_throughput_parts(examined))
    out = " ".join(capsys.readouterr().out.split())
    for expected in (
        "Not run: other: it has no settings.",
        "small; kept: what ran.",
        "Not modelled: small; kept: what is off.",
        "small; kept; other: by hand.",
        "small: printed 0.5 s a step; here llama_3_2_1b, 2 H100, fsdp 2, 1 x 2 sequences of 256, recompute none, ",
        "0.500",
    ):
        assert expected in out

    lines = Lines(80)
    published_throughput_screen(lines, examined)
    assert lines.lines[0].startswith("2 published steps")
    assert [line.split()[0] for line in lines.lines[2:4]] == ["small", "errors"]
    assert "why 1 more are not run" in " ".join(" ".join(lines.lines).split())


def test_as_a_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    records = ThroughputRecords(rows=(row_of(None, "other"), row_of(SMALL)), ratios=())
    monkeypatch.setattr(throughput, "load_published_throughput", lambda: records)
    assert main(["--published", "throughput", "--json"]) == 0
    published = json.loads(capsys.readouterr().out)["published"]
    not_run, run = published["rows"]
    assert (not_run["not_run"], not_run["step_time"]) == ("it has no settings", None)
    assert run["step_time"]["gpu"] == "H100"
    assert run["relative_error"] == run["step_time"]["seconds"] / 0.5 - 1
    assert published["errors"][0]["worst"] == "small"
    assert published["ratios"] == []
    assert main(["--published", "throughput"]) == 0
    assert "1 published steps" in capsys.readouterr().out


def test_cells() -> None:
    assert (seconds(13.75), seconds(0.76561)) == ("13.75", "0.766")
    assert signed_percent(-0.1234, 1) == "-12.3 %"


# --- The gates --------------------------------------------------------------------------------------------------------

GATED = [row for row in RECORDS.rows if row.gate]
RUN = [row for row in RECORDS.rows if row.run is not None]
DENSE_WITHIN, DENSE_MEDIAN_WITHIN = 0.25, 0.15
COMPILED_WITHIN = 0.03


@cache
def examined(name: str) -> ExaminedThroughput:
    return examine_throughput(next(row for row in RECORDS.rows if row.name == name))


def all_examined() -> Throughput:
    return summed_up([examined(row.name) for row in RUN])


@pytest.mark.parametrize("name", [row.name for row in GATED])
def test_no_run_beats_its_bound(name: str) -> None:
    row = examined(name)
    assert row.not_run is None
    assert row.step_time is not None
    assert row.measured_seconds is not None
    assert row.step_time.bound_seconds <= row.measured_seconds
    assert not beats_bound(row)


@pytest.mark.parametrize("name", [row.name for row in GATED if row.kind == "dense"])
def test_estimates_of_dense_models_are_near(name: str) -> None:
    error = examined(name).relative_error
    assert error is not None
    assert abs(error) <= DENSE_WITHIN


@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_the_band_is_around_the_errors(kind: ModelKind) -> None:
    """Of an estimate of s seconds from s / (1 + high) to s / (1 + low), but for the bound."""
    band = errors_of(kind)
    assert band.low < 0 < band.high
    time = next(examined(row.name).step_time for row in GATED if row.kind == kind)
    assert time is not None
    assert time.high_seconds == pytest.approx(time.seconds / (1 + band.low))
    assert time.low_seconds == pytest.approx(max(time.bound_seconds, time.seconds / (1 + band.high)))


def ratio_of_compiling() -> ExaminedRatio:
    (ratio,) = summed_up([examined(name) for name in ("torchtitan 8B", "torchtitan 8B, compiled")]).ratios
    return ratio


def test_what_compiling_saves_as_measured() -> None:
    """6,667 / 5,762 tokens / s = 1.157."""
    ratio = ratio_of_compiling()
    assert ratio.gate
    assert ratio.measured == pytest.approx(6667 / 5762, rel=1e-12)
    assert ratio.estimated > 1


def test_what_compiling_saves() -> None:
    assert abs(ratio_of_compiling().relative_error) <= COMPILED_WITHIN


def test_the_median_of_dense_models_is_nearer() -> None:
    errors = summed_up([examined(row.name) for row in GATED]).errors
    dense = next(found for found in errors if (found.kind, found.gate) == ("dense", True))
    assert dense.rows == sum(row.kind == "dense" for row in GATED)
    assert dense.median_absolute <= DENSE_MEDIAN_WITHIN


@pytest.mark.sweep
@pytest.mark.parametrize("name", [row.name for row in RUN if not row.gate])
def test_no_other_run_beats_its_bound(name: str) -> None:
    assert examined(name).not_run is None
    assert not beats_bound(examined(name))


@pytest.mark.sweep
@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_the_band_is_that_of_the_errors(kind: ModelKind) -> None:
    """`configs/step_time_errors.json`: the middle 80 % of them, rounded outwards to a tenth of a percent."""
    found = next(each for each in all_examined().errors if each.kind == kind and not each.gate)
    band = errors_of(kind)
    assert band.rows == found.rows
    assert found.tenth - 0.001 <= band.low <= found.tenth
    assert found.ninetieth <= band.high <= found.ninetieth + 0.001


def rows_of_the_page() -> list[list[str]]:
    """The cells of the table of speeds in docs/published.md."""
    page = (Path(__file__).resolve().parents[3] / "docs" / "published.md").read_text(encoding="utf-8")
    _, table = page.split("| run | bound | estimate | measured | error |\n|---|---|---|---|---|\n")
    return [line.strip("| ").split(" | ") for line in table.partition("\n\n")[0].splitlines()]


@pytest.mark.parametrize("name", [row.name for row in GATED])
def test_the_page_has_the_rows_of_the_gates(name: str) -> None:
    assert [name, *speed_cells(examined(name))] in rows_of_the_page()


@pytest.mark.sweep
def test_the_page_has_all_rows() -> None:
    assert rows_of_the_page() == [[row.name, *speed_cells(row)] for row in all_examined().rows]
