"""How long a step takes, from the flags to the report; the seconds have their own tests."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from counting.analysis import analyze
from counting.cost.cluster import Cluster
from counting.cost.hardware import find_gpu
from counting.step.time import NO_TIME_BY_FORMULA
from model_training_cost_analysis import main
from tests.foreign_families import PHI3
from tests.shrunken import LLAMA, MISTRAL
from torch_models.layout import Layout

pytestmark = pytest.mark.usefixtures("equal_steps_once")

LINK = {"gb_per_s": 450, "latency_seconds": 3e-6}
OWN_GPU = {
    "name": "Ours",
    "description": "a board of our own without rates",
    "training_dtype": "bfloat16",
    "peak_dense_tflop_per_s": 500,
    "peak_dense_fp8_tflop_per_s": None,
    "memory_gb": 128,
    "memory_bandwidth_tb_per_s": 2,
    "power_watts": None,
    "price_usd_per_hour": 1.25,
    "architecture": "Hopper",
    "sources": {"compute": "us", "memory": "us", "power": None, "price": "us"},
}
CALIBRATION = {"scale": 1.25, "low": 0.96, "high": 1.03, "rows": 5}


@pytest.fixture(autouse=True)
def files(folder: Path) -> None:
    (folder / "own.json").write_text(json.dumps(LLAMA))
    (folder / "other.json").write_text(json.dumps(MISTRAL))
    (folder / "foreign.json").write_text(json.dumps(PHI3))
    (folder / "cluster.json").write_text(json.dumps({"gpu": "H100", "gpus_per_node": 4}))
    (folder / "scaled.json").write_text(json.dumps({"gpu": "H100", "calibration": CALIBRATION}))
    (folder / "kernel.json").write_text(json.dumps({"gpu": "H100", "attention_kernel": "foo"}))
    (folder / "a100.json").write_text(json.dumps({"gpu": "A100"}))
    (folder / "alone.json").write_text(json.dumps({"gpu": OWN_GPU}))
    (folder / "gpus.json").write_text(json.dumps([OWN_GPU, OWN_GPU | {"name": "Theirs", "architecture": None}]))


def document_of(flags: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["--json", "--model_config", "own.json", "--reserved", "off", *flags.split()]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def times_of(flags: str, capsys: pytest.CaptureFixture[str]) -> Any:
    (analysis,) = document_of(flags, capsys)["analyses"]
    return analysis["step_time"]


def test_gpus_say_how_long_a_step_takes(capsys: pytest.CaptureFixture[str]) -> None:
    clusters = [Cluster(gpu=find_gpu(name)) for name in ("H100", "A100")]
    expected = analyze("own.json", cluster=clusters).step_time
    assert times_of("--gpus h100,A100", capsys) == json.loads(msgspec.json.encode(expected))
    assert expected is not None
    assert [time.gpu for time in expected] == ["H100", "A100"]
    for time in expected:
        assert 0 < time.bound_seconds <= time.low_seconds <= time.seconds <= time.high_seconds
        assert time.breakdown.total == pytest.approx(time.seconds, rel=1e-9)
        assert 0 < time.mfu <= time.bound_mfu
        assert time.tokens_per_second_per_gpu == pytest.approx(64 / time.seconds, rel=1e-9)


@pytest.mark.parametrize(
    ("flags", "node", "cluster"),
    [
        ("--gpus GB200", 72, {"gpus_per_node": 72}),
        ("--gpus H100 --gpus_per_node 1", 1, {"gpus_per_node": 1}),
        ("--cluster cluster.json", 4, {"gpus_per_node": 4}),
        ("--cluster cluster.json --gpus_per_node 1 --power_watts 500", 1, {"gpus_per_node": 1, "power_watts": 500}),
    ],
)
def test_a_node_is_as_large_as_the_flag_says(
    flags: str, node: int, cluster: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Else as the file or the catalogue does."""
    (found,) = document_of(f"--layout tp=2 {flags}", capsys)["analyses"]
    gpu = find_gpu("GB200" if "GB200" in flags else "H100")
    analysis = analyze("own.json", layout=Layout(tp=2), cluster=Cluster(gpu=gpu, **cluster))
    assert found["step_time"] == json.loads(msgspec.json.encode(analysis.step_time))
    assert analysis.layout is not None
    assert found["layout"]["gpus_per_node"] == analysis.layout.gpus_per_node == node


def test_each_gpu_has_a_node_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """16 ranks of tp are in one node of a GB200, not in one of an H100, whichever is named first."""
    both = times_of("--layout fsdp=16 --gpus H100,GB200", capsys)
    alone = times_of("--layout fsdp=16 --gpus GB200", capsys)
    assert both[1] == alone[0]


def test_a_layouts_node_is_that_of_the_cluster_if_the_cluster_does_not_say() -> None:
    """Two ranks of tp on nodes of one GPU cross the network, which is slower."""
    gpu = find_gpu("H100")
    within, across = (
        analyze("own.json", layout=Layout(tp=2, gpus_per_node=node), cluster=Cluster(gpu=gpu)).step_time
        for node in (2, 1)
    )
    said = analyze("own.json", layout=Layout(tp=2), cluster=Cluster(gpu=gpu, gpus_per_node=1)).step_time
    assert within is not None
    assert across is not None
    assert across[0].breakdown.communication["tp"] > within[0].breakdown.communication["tp"]
    assert said == across


def test_a_power_limit_slows_products_alone(capsys: pytest.CaptureFixture[str]) -> None:
    (full,), (half,) = times_of("--gpus H100", capsys), times_of("--gpus H100 --power_watts 350", capsys)
    assert half["breakdown"]["products"] > full["breakdown"]["products"]
    assert half["breakdown"]["optimizer"] == full["breakdown"]["optimizer"]


def test_calibrated_steps(capsys: pytest.CaptureFixture[str]) -> None:
    (estimate,), (scaled,) = times_of("--gpus H100", capsys), times_of("--cluster scaled.json", capsys)
    assert (estimate["basis"], scaled["basis"]) == ("estimate", "calibrated")
    assert scaled["seconds"] == pytest.approx(1.25 * estimate["seconds"], rel=1e-9)
    assert scaled["high_seconds"] == pytest.approx(1.03 * scaled["seconds"], rel=1e-9)
    assert scaled["bound_seconds"] == estimate["bound_seconds"]


def test_compiled_layers_are_faster(capsys: pytest.CaptureFixture[str]) -> None:
    """Also where axes divide them, of which no reserve is estimated, and by default none is asked for."""
    (eager,), (compiled,) = times_of("--gpus H100", capsys), times_of("--gpus H100 --execution compiled", capsys)
    assert compiled["breakdown"]["memory_bound"] < eager["breakdown"]["memory_bound"]
    flags = ["--model_config", "own.json", "--layout", "tp=2", "--gpus", "H100", "--execution", "compiled"]
    assert main(["--json", *flags]) == 0
    (found,) = json.loads(capsys.readouterr().out)["analyses"]
    assert found["step_time"][0]["seconds"] > 0
    assert found["rank_classes"][0]["memory"]["reserved_bytes"] is None
    assert any("of compiled layers" in note for note in found["rank_classes"][0]["memory"]["notes"])
    assert main([*flags, "--reserved", "on"]) == 2
    assert "--execution = 'compiled': what is reserved is modelled of whole layers" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    ["", "--layout fsdp=2", "--gpus H100 --tokens 1B", "--gpus H100 --training_budget 5M", "--reserved on"],
)
def test_where_no_time_is_asked_for(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert times_of(flags, capsys) is None


def test_gpus_whose_speed_is_unknown_are_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    (analysis,) = document_of("--gpu_file gpus.json --gpus Theirs,H100", capsys)["analyses"]
    assert [time["gpu"] for time in analysis["step_time"]] == ["H100"]
    assert [fit["gpu"] for fit in analysis["fits"]] == ["Theirs", "H100"]
    (not_timed,) = analysis["not_timed"]
    assert (not_timed["gpu"], not_timed["reason"]) == ("Theirs", "no rates of them or their architecture are known")
    assert not_timed["remedy"].startswith('give "rates" in a --cluster file, as calibrate writes it')
    assert times_of("--gpu_file gpus.json --gpus Theirs", capsys) is None
    (analysis,) = document_of("--gpus A100,H100 --precision fp8", capsys)["analyses"]
    assert [time["gpu"] for time in analysis["step_time"]] == ["H100"], "an A100 has no products in FP8"
    assert analysis["not_timed"][0]["remedy"].startswith("give another --precision")


def test_the_remedy_of_a_link_brings_the_prediction_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = "--layout fsdp=2 --tokens 1B --price 2"
    document = document_of(f"{run} --gpus L4", capsys)
    (without,) = document["analyses"][0]["not_timed"]
    assert document["runs"][0]["gpus"][0]["outcomes"][0]["mfu_source"] == "assumed"
    assert without["reason"] == "the speed of links within a node is unknown"
    given, _, run_too = without["remedy"].removeprefix("give it in a --cluster file, as ").partition(", and ")
    assert run_too == "the run's MFU is predicted"
    (folder / "l4.json").write_text(given.replace("...", '"L4"'))
    document = document_of(f"{run} --cluster l4.json", capsys)
    assert document["analyses"][0]["step_time"][0]["as_products"] == ["attention"]
    assert document["runs"][0]["gpus"][0]["outcomes"][0]["mfu_source"] == "predicted"


def test_a_run_of_less_than_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    """Names what was given: 2 ranks x 64 tokens."""
    assert main(["--model_config", "own.json", "--layout", "fsdp=2", "--gpus", "H100", "--tokens", "1"]) == 2
    assert "--tokens = 1: must be at least those of one step, 128" in capsys.readouterr().err


def test_no_time_by_megatrons_rules(capsys: pytest.CaptureFixture[str]) -> None:
    (analysis,) = document_of("--gpus H100 --layout tp=2 --framework megatron", capsys)["analyses"]
    assert analysis["step_time"] == []
    assert NO_TIME_BY_FORMULA in analysis["notes"]
    assert main(["--model_config", "own.json", "--gpus", "H100", "--layout", "tp=2", "--framework", "megatron"]) == 0
    assert "by Megatron-LM's rules no step is run" in " ".join(capsys.readouterr().out.split())


def test_a_run_is_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    document = document_of("--tokens 1B --layout fsdp=2,tp=2 --cluster scaled.json --price 2", capsys)
    (time,), (on_gpu,) = document["analyses"][0]["step_time"], document["runs"][0]["gpus"]
    slow, predicted, fast = on_gpu["outcomes"]
    assert [outcome["mfu_source"] for outcome in on_gpu["outcomes"]] == ["predicted"] * 3
    assert (predicted["mfu"], on_gpu["num_gpus"], on_gpu["price_usd_per_hour"]) == (time["mfu"], 4, 2)
    hours = 1e9 / time["tokens_per_second_per_gpu"] / 3600
    assert predicted["gpu_hours"] == pytest.approx(hours, rel=1e-9)
    assert predicted["days"] == pytest.approx(hours / 4 / 24, rel=1e-9)
    assert slow["mfu"] < predicted["mfu"] <= fast["mfu"]
    given = document_of("--tokens 1B --layout fsdp=2,tp=2 --gpus H100 --mfu 1e-4", capsys)
    assert [outcome["mfu_source"] for outcome in given["runs"][0]["gpus"][0]["outcomes"]] == ["given"]


def test_a_trace(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model_config", "own.json", "--gpus", "H100", "--layout", "fsdp=2", "--trace", "step.json"]
    assert main(flags) == 0
    events = json.loads((folder / "step.json").read_bytes())["traceEvents"]
    assert {"compute", "fsdp"} <= {event["args"].get("name") for event in events if event["ph"] == "M"}
    capsys.readouterr()
    assert main(flags) == 2
    assert "step.json: exists already; give --force" in capsys.readouterr().err
    assert main([*flags, "--force"]) == 0


def test_what_a_trace_leaves_out_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--model_config", "own.json", "--gpus", "H100", "--micro_batches", "40", "--trace", "step.json", "--force"]
    assert main(flags) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("counting.cost.step_time.trace.MOST_EVENTS", 50)
    assert main([*flags, "--json"]) == 0
    printed = capsys.readouterr()
    note = "step.json: an event is a pass, as those of layers were more than 50."
    assert printed.err == f"note: {note}\n"
    assert note in json.loads(printed.out)["analyses"][0]["notes"]


def test_a_document_is_a_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--cluster cluster.json --power_watts 500 --layout fsdp=2 --trace step.json"
    document = document_of(flags, capsys)
    (folder / "before.json").write_text(json.dumps(document))
    assert main(["--plan", "before.json", "--json"]) == 0  # the trace is not written again
    again = json.loads(capsys.readouterr().out)
    assert again["analyses"] == document["analyses"]
    (folder / "plan.toml").write_text('model_config = "own.json"\ncluster = "cluster.json"\npower_watts = 500\n')
    assert main(["--plan", "plan.toml", "--json"]) == 0


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ("--power_watts 500", "--power_watts needs --gpus or --cluster: name the GPUs, as --gpus H100"),
        ("--trace t.json", "--trace needs --gpus or --cluster: name the GPUs, as --gpus H100"),
        ("--gpus H100,A100 --trace t.json", "--trace writes one file: name one GPU, not 2: H100, A100"),
        ("other.json --gpus H100 --trace t.json", "--trace writes one file: give --model_config with one config"),
        ("--gpus H100 --tokens 1B --trace t.json", "--trace is of the time of a step, which a run without --layout"),
        ("--gpus H100 --training_budget 1M --power_watts 9", "--power_watts is of the time of a step, which a budget"),
        ("--gpus H100 --trace missing/t.json", "there is no folder missing"),
        ("--gpus H100 --layout tp=2 --framework megatron --trace t.json", "--trace is of a step that is run"),
        ("--gpus H100 --layout tp=2 --framework megatron --power_watts 500", "--power_watts is of a step that is run"),
        ("--cluster cluster.json --gpus H100", "--cluster does not go with --gpus: the file names its GPU"),
        ("--cluster cluster.json --gpu_file g.json", "--cluster does not go with --gpu_file: the file has its GPU"),
        ("--cluster cluster.json --training_budget 1M", "--cluster does not go with --training_budget: a budget takes"),
        ("--cluster cluster.json --tokens 1B", "--cluster with --tokens needs --layout, which says how each step is"),
        ("other.json --cluster cluster.json --tokens 1B --compare", "--cluster does not go with --compare"),
        ("--cluster=", "--cluster '': must name a file"),
        ("--gpus H100 --trace=", "--trace '': must name a file"),
        (
            "--cluster cluster.json --trace ./cluster.json --force",
            "./cluster.json: --trace would replace what --cluster",
        ),
        (
            "--cluster cluster.json --trace own.json --force",
            "own.json: --trace would replace what --model_config reads",
        ),
        ("--gpu_file gpus.json --gpus Ours --trace_memory gpus.json --force", "would replace what --gpu_file reads"),
        ("--gpus H100 --trace t.json --trace_memory ./t.json", "./t.json: --trace and --trace_memory name one file"),
        ("--cluster kernel.json", "kernel.json: attention_kernel = 'foo': is not in the rates of H100: choose from"),
        ("--cluster a100.json --precision fp8", "a100.json: A100: no rate of products in FP8 is known"),
        ("--cluster missing.json", "missing.json: no such file"),
        ("--cluster own.json", "own.json: architectures = ['LlamaForCausalLM']: this field is not understood"),
        ("--gpus H100 --power_watts 701", "--power_watts = 701.0: must be at most the limit of the board of H100: 700"),
        ("--cluster cluster.json --power_watts 701", "--power_watts = 701.0: must be at most the limit of the board"),
        ("--gpu_file gpus.json --power_watts 100", "which is not known of Ours: leave it out"),
        ("--gpus H100 --power_watts -5", "--power_watts = '-5': must be a number of watts above 0, at most 1e+06, as"),
        ("--gpus H100 --power_watts nan", "--power_watts = 'nan': must be a number of watts above 0"),
        ("--gpus H100 --power_watts 1e30", "--power_watts = '1e30': must be a number of watts above 0"),
        ("--gpu_file gpus.json --gpus Theirs --trace t.json", "Theirs"),
        ("--execution compiled --reserved off", "--execution is of what the allocator reserves"),
        ("--layout fsdp=2 --gpus H100 --tokens 1B --mfu 0.99", "--mfu = 0.99: no run of this layout on H100 is above"),
        ("--layout fsdp=2 --gpus H100 --tokens 1B --num_gpus 3", "--num_gpus = 3"),
    ],
)
def test_errors_are_one_line(flags: str, error: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"--model_config own.json {flags}".split()) == 2
    captured = capsys.readouterr()
    assert error in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert not (folder / "t.json").exists()


def test_links_that_a_group_needs_are_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Links are of a board, so that those of a relative are not taken over."""
    flags = ["--model_config", "own.json", "--layout", "fsdp=16"]
    assert main([*flags, "--cluster", "alone.json"]) == 2
    error = '{"gpu": "Ours", "node_link": {"gb_per_s": 450}}, of one GPU in one direction'
    assert capsys.readouterr().err.endswith(f"there is unknown: give it in a --cluster file, as {error}\n")
    (folder / "alone.json").write_text(json.dumps({"gpu": OWN_GPU, "node_link": LINK}))
    assert main([*flags, "--cluster", "alone.json"]) == 2
    assert '"network_link": {"gb_per_s": 50}' in capsys.readouterr().err
    (folder / "alone.json").write_text(json.dumps({"gpu": OWN_GPU, "node_link": LINK, "network_link": LINK}))
    assert main([*flags, "--cluster", "alone.json"]) == 0
    capsys.readouterr()
    assert main([*flags, "--gpu_file", "gpus.json", "--gpus", "Ours"]) == 0
    assert "no time Ours: the speed of links within a node is unknown: give it in a --cluster file" in " ".join(
        capsys.readouterr().out.split()
    )


def test_whose_rates_are_taken_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    (time,) = times_of("--gpu_file gpus.json --gpus Ours", capsys)
    assert time["gpu"] == "Ours"
    assert find_gpu(time["rates_of"]).architecture == "Hopper"
    assert main(["--model_config", "own.json", "--gpu_file", "gpus.json"]) == 0
    screen = " ".join(capsys.readouterr().out.split())
    assert f"rates none are known of it: Ours has those of {time['rates_of']}, scaled" in screen
    assert "no time Theirs: no rates of them" in screen


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rates": {"attention": []}}, "too fast attention on H100, no rates are known"),
        ({"calibration": CALIBRATION | {"scale": 0.001}}, "calibration the scale is held to the bound: H100"),
    ],
)
def test_what_may_be_far_off_is_said(
    fields: dict[str, Any], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "odd.json").write_text(json.dumps({"gpu": "H100"} | fields))
    for file, expected in (("odd.json", True), ("scaled.json", False)):
        assert main(["--model_config", "own.json", "--layout", "fsdp=2", "--cluster", file]) == 0
        assert (said in " ".join(capsys.readouterr().out.split())) is expected


@pytest.mark.parametrize("flag", ["--cluster cluster.json", "--gpus H100 --power_watts 500", "--gpus H100 --trace t"])
def test_no_step_no_time(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"--model_config foreign.json --seq_len 8 {flag}".split()) == 2
    assert f"on one device, without allocator and time: leave out {flag.split()[-2]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        "--gpus H100,A100,T4,H20",
        "--gpus H100,A100,T4,H20 --layout fsdp=4",
        "--gpus H100,H200,B200 --layout fsdp=2,tp=2 --tokens 1T",
        "--cluster scaled.json --layout fsdp=4,pp=3 --micro_batches 4 --kernels eager --tokens 1T --price 2",
        "other.json --gpus H100,A100 --layout fsdp=4",
    ],
)
def test_it_is_one_screen(flags: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(f"--model_config own.json {flags}".split()) == 0
    lines = capsys.readouterr().out.splitlines()
    models = 1 + flags.startswith("other")
    assert len(lines) <= 30 + 10 * (models - 1)
    assert max(map(len, lines)) <= 80
    of_several = [line for line in lines if line.startswith(("  own    H100 ", "  other  H100 "))]
    assert sum(" a step, " in line for line in lines) + len(of_several) >= models
