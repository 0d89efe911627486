"""The sub-command: what it prints and writes, and its errors."""

import json
from pathlib import Path
from typing import Any

import pytest

from counting.analysis import analyze
from counting.calibration import machine
from counting.command.calibrate.rows import COLUMNS
from counting.cost.cluster import Cluster, read_cluster
from counting.cost.hardware import find_gpu
from counting.setup import Setup
from model_training_cost_analysis import main
from tests.counting.calibration.found_machines import NODE, found_machine
from tests.shrunken import LLAMA
from torch_models.layout import Layout

pytestmark = pytest.mark.usefixtures("equal_steps_once")

FACTORS = (1.1, 1.2, 1.3)
OUTPUT = "--output cluster.json"
LAYOUT = Layout(num_gpus=4, fsdp=2, tp=2)
ONE_OF_TWO = (
    "calibrate takes a file of measured steps or --measure, one of the two: the file that one of them writes is given "
    "to the other with --cluster"
)


@pytest.fixture
def rows(folder: Path) -> Path:
    """Steps that take 1.1, 1.2 and 1.3 times their estimates on an H100."""
    (folder / "tiny").write_text(json.dumps(LLAMA))
    lines = [",".join(COLUMNS)]
    for length, factor in zip((16, 32, 64), FACTORS, strict=True):
        times = analyze("tiny", Setup(sequence_length=length), cluster=Cluster(gpu=find_gpu("H100"))).step_time
        assert times is not None
        lines.append(f"tiny,{length},H100,1,,1,1,none,eager,{factor * times[0].seconds!r}")
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    return folder


def run(flags: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["calibrate", *flags.split()]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def error_of(flags: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["calibrate", *flags.split()]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err.rstrip("\n")


def test_measured_steps_become_a_scale_in_a_clusters_file(
    rows: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    screen = run(f"rows.csv {OUTPUT}", capsys)
    scale = (1.1 * 1.2 * 1.3) ** (1 / 3)
    assert screen.startswith("A step on H100 takes 1.197 × its estimate, by 3 measured steps\n")
    assert max(map(len, screen.splitlines())) <= 80
    assert len(screen.splitlines()) <= 30
    assert screen.rstrip().endswith("written         cluster.json")
    errors = [line.split()[-1] for line in screen.splitlines() if " tiny " in line]
    assert errors == ["+13.5%", "-0.3%", "-11.6%"], "sqrt(1.2 x 1.3) / 1.1 - 1, sqrt(1.1 x 1.3) / 1.2 - 1, ..."
    cluster = read_cluster("cluster.json")
    assert cluster.gpu == find_gpu("H100")
    assert cluster.calibration is not None
    assert cluster.calibration.scale == pytest.approx(scale)
    assert main(["--json", "--model_config", "tiny", "--seq_len", "32", "--cluster", "cluster.json"]) == 0
    (time,) = json.loads(capsys.readouterr().out)["analyses"][0]["step_time"]
    (estimate,) = analyze("tiny", Setup(sequence_length=32), cluster=Cluster(gpu=find_gpu("H100"))).step_time or ()
    assert time["basis"] == "calibrated"
    assert time["seconds"] == pytest.approx(scale * estimate.seconds)


def test_json_has_the_file_and_every_row(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (rows / "start.json").write_text('{"gpu": "H100", "gpus_per_node": 4}')
    document = json.loads(run(f"rows.csv {OUTPUT} --cluster start.json --json", capsys))
    assert document["cluster"] == json.loads((rows / "cluster.json").read_text())
    assert document["cluster"]["gpus_per_node"] == 4
    assert document["calibration"]["calibration"] == document["cluster"]["calibration"]
    assert [row["seconds"]["measured_seconds"] for row in document["calibration"]["rows"]] == [
        float(line.rpartition(",")[2]) for line in (rows / "rows.csv").read_text().splitlines()[1:]
    ]
    assert document["machine"] is None


def test_steps_of_ranks_that_clip_their_gradients(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each takes 1.2 times its estimate, which is longer than that of a step without clipping."""
    lines, cluster = [",".join((*COLUMNS, "clip_gradients"))], Cluster(gpu=find_gpu("H100"))
    for length in (16, 32, 64):
        plain, clipped = (
            analyze("tiny", Setup(sequence_length=length, clip_gradients=clips), layout=LAYOUT, cluster=cluster)
            for clips in (False, True)
        )
        assert plain.step_time is not None
        assert clipped.step_time is not None
        assert clipped.step_time[0].seconds > plain.step_time[0].seconds
        seconds = 1.2 * clipped.step_time[0].seconds
        lines.append(f'tiny,{length},H100,4,"fsdp=2,tp=2",1,1,none,eager,{seconds!r},on')
    (rows / "rows.csv").write_text("\n".join(lines) + "\n")
    found = json.loads(run(f"rows.csv {OUTPUT} --json", capsys))["calibration"]["calibration"]
    assert found["scale"] == pytest.approx(1.2)


def test_a_machine_that_was_measured_is_printed_and_written(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def measured(ranks: machine.Ranks, seconds: float, show: Any) -> Any:
        asked.append(seconds)
        return found_machine(links=(NODE,), gpus_per_node=8, beside_collectives_share=0.8, spread=0.02)

    monkeypatch.setattr(machine, "measure_machine", measured)
    monkeypatch.setenv("COLUMNS", "80")
    (folder / "start.json").write_text('{"gpu": "H100", "power_watts": 500}')
    screen = run(f"--measure --minutes 0.5 {OUTPUT} --cluster start.json", capsys)
    assert asked == [30]
    assert max(map(len, screen.splitlines())) <= 80
    assert len(screen.splitlines()) <= 30
    for said in (
        "products        bfloat16: best 500 GFLOP/s, sustained 400 GFLOP/s",
        "experts         250 GFLOP/s at 128 tokens",
        "in a node       320 GB/s of each of 8 ranks, the shortest call 29.4 µs;",
        "beside          collectives, products keep 80 % of their speed",
        "spread          2.0 %",
        "left out        power_watts of the file before",
    ):
        assert said in screen
    assert json.loads((folder / "cluster.json").read_text())["node_link"]["achieved_gb_per_s"] == 320
    document = json.loads(run(f"--measure {OUTPUT} --force --json", capsys))
    assert asked[1:] == [120]
    assert document["machine"]["products"]["best_tflop_per_s"] == 0.5
    assert document["calibration"] is None


def test_the_first_of_several_ranks_alone_prints_and_writes(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import contextlib

    class Second(machine.Ranks):
        def shared(self, value: Any) -> Any:
            return None, {}

    monkeypatch.setattr(machine, "measure_machine", lambda *_: found_machine())
    monkeypatch.setattr(machine, "joined_ranks", lambda kind: contextlib.nullcontext(Second(rank=1, world=2)))
    assert run(f"--measure {OUTPUT}", capsys) == ""
    assert list(folder.iterdir()) == []


def test_a_file_is_replaced_with_force_alone(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (rows / "cluster.json").write_text("mine")
    said = "error: cluster.json: exists already; give --force to replace it, or another name"
    assert error_of(f"rows.csv {OUTPUT}", capsys) == said
    assert error_of(f"--measure {OUTPUT}", capsys) == said
    assert (rows / "cluster.json").read_text() == "mine"
    run(f"rows.csv {OUTPUT} --force", capsys)
    run(f"rows.csv {OUTPUT} --force --cluster cluster.json", capsys)
    assert set(json.loads((rows / "cluster.json").read_text())) == {"gpu", "calibration"}


def test_no_file_that_is_read_is_replaced(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """But for the cluster's, which the new one has in it."""
    before = {file.name: file.read_bytes() for file in rows.iterdir()}
    said = "rows.csv: --output would replace what calibrate reads: name another file for --output"
    assert error_of("rows.csv --output ./rows.csv --force", capsys) == f"error: ./{said}"
    said = "tiny: --output would replace what rows.csv reads: name another file for --output"
    assert error_of("rows.csv --output tiny --force", capsys) == f"error: {said}"
    assert {file.name: file.read_bytes() for file in rows.iterdir()} == before


def test_a_row_that_is_faster_than_its_bound_is_named(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (rows / "rows.csv").read_text().splitlines()
    lines[2] = lines[2].rpartition(",")[0] + ",1e-9"
    (rows / "rows.csv").write_text("\n".join(lines))
    said = error_of(f"rows.csv {OUTPUT}", capsys)
    assert said.startswith("error: rows.csv: row 2 (line 3): seconds = 1e-09: is faster than the bound of this step, ")
    assert not (rows / "cluster.json").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("", "calibrate needs --output: name the file to write, as --output cluster.json"),
        ("rows.csv", "calibrate needs --output: name the file to write, as --output cluster.json"),
        (
            OUTPUT,
            ONE_OF_TWO,
        ),
        (
            f"rows.csv --measure {OUTPUT}",
            ONE_OF_TWO,
        ),
        (f"rows.csv --minutes 1 {OUTPUT}", "--minutes needs --measure"),
        (f"--measure --minutes 0 {OUTPUT}", "--minutes = '0': must be a number from 0.01 to 120"),
        (f"--measure --minutes long {OUTPUT}", "--minutes = 'long': must be a number from 0.01 to 120"),
        ("rows.csv --output=", "--output '': must name a file"),
        (f"rows.csv {OUTPUT} --cluster=", "--cluster '': must name a file"),
        (f"none.csv {OUTPUT}", "none.csv: no such file"),
        (f"rows.csv {OUTPUT} --cluster none.json", "none.json: no such file"),
        ("rows.csv --output none/cluster.json", "none/cluster.json: there is no folder none"),
        (f"rows.csv {OUTPUT} --speed 3", "unrecognized arguments: --speed 3; calibrate --help lists the flags"),
    ],
)
def test_errors_are_one_line(flags: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(flags, capsys) == f"error: {said}"
    assert list(folder.iterdir()) == []


def test_errors_of_the_model_name_the_column(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (rows / "rows.csv").read_text().splitlines()
    wrong = {
        "tiny,32,H100,3,tp=3,1,1,none,eager,0.5": "layout: tp = 3: must divide",
        "tiny,32,H100,4,fsdp=3,1,1,none,eager,0.5": "num_gpus = 4: ",
        "tiny,128,H100,1,,1000000,1,none,eager,0.5": "micro_batch_size = 1000000: makes 128000000 tokens",
    }
    for line, said in wrong.items():
        (rows / "rows.csv").write_text("\n".join([lines[0], line, *lines[2:]]))
        assert error_of(f"rows.csv {OUTPUT}", capsys).startswith(f"error: rows.csv: row 1 (line 2): {said}")


def test_a_link_of_unknown_speed_is_asked_for(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (rows / "rows.csv").read_text().splitlines()
    spread = [line.replace("H100,1,,", "L40S,16,fsdp=16,") for line in lines[1:]]
    (rows / "rows.csv").write_text("\n".join([lines[0], *spread]))
    said = error_of(f"rows.csv {OUTPUT}", capsys)
    assert said.startswith("error: rows.csv: row 1 (line 2): node_link = null: the layout has groups within a node")
    assert 'give it in a --cluster file, as {"gpu": "L40S", "node_link": ' in said


def test_a_gpu_without_rates_is_named_by_its_column(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (rows / "rows.csv").write_text((rows / "rows.csv").read_text().replace("H100", "T4"))
    assert error_of(f"rows.csv {OUTPUT}", capsys).startswith(
        "error: rows.csv: row 1 (line 2): gpu = 'T4': has no rates"
    )


def test_one_step_three_times_is_no_three_steps(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (rows / "rows.csv").read_text().splitlines()
    (rows / "rows.csv").write_text("\n".join([lines[0], lines[1], f"{lines[1]}1", f"{lines[1]}2"]))
    said = error_of(f"rows.csv {OUTPUT}", capsys)
    assert said.startswith("error: rows.csv: all 3 rows are one step, measured again: ")
    assert said.endswith("give rows of at least two different steps")
    (rows / "rows.csv").write_text("\n".join([*lines[:2], lines[1], lines[3]]))
    run(f"rows.csv {OUTPUT}", capsys)


def test_two_rows_are_too_few(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (rows / "rows.csv").write_text("\n".join((rows / "rows.csv").read_text().splitlines()[:3]))
    said = "error: rows.csv: 2 measured steps are too few: a scale and its error need at least 3"
    assert error_of(f"rows.csv {OUTPUT}", capsys) == said
