"""The command as a process: where it runs, what it does with its output, and what it imports."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from counting.command.flags import VERSION

SCRIPT = Path(__file__).resolve().parents[3] / "model_training_cost_analysis.py"


def run(*arguments: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False, **options)


def test_as_a_process_from_another_folder(tmp_path: Path) -> None:
    done = run("--model_config", "llama_7b_config.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Number of parameters: 6738415616\n")


def test_a_bad_flag_as_a_process(tmp_path: Path) -> None:
    done = run("--training_budget", "x", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--training_budget", "5000000"],
        stdout=writer,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    os.close(writer)
    _, errors = process.communicate(timeout=60)
    assert errors == b""


COMMAND = "import sys; sys.argv[1:] = {arguments!r}; from model_training_cost_analysis import command; command()"


def run_command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """The installed command's entry point, with `options` of subprocess.run."""
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent)} | options.pop("env", {})
    code = COMMAND.format(arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", code], env=environment, timeout=120, check=False, **options)


def test_the_entry_point_is_the_command() -> None:
    project = tomllib.loads((SCRIPT.parent / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"model-training-cost-analysis": "model_training_cost_analysis:command"}
    assert project["version"] == VERSION


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_output_without_our_characters(encoding: str) -> None:
    flags = ("--model_config", "llama_7b", "--training_budget", "5000000")
    done = run_command(*flags, capture_output=True, env={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"Number of parameters: 6738415616")


def test_warnings_as_errors_stop_nothing() -> None:
    done = run_command("--model_config", "llama_7b", "--json", capture_output=True, env={"PYTHONWARNINGS": "error"})
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line_and_exit_2() -> None:
    with open("/dev/full", "w") as full:
        done = run_command("--training_budget", "5000000", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr == b"error: the output cannot be written: No space left on device\n"


def test_a_closed_output_is_no_error(tmp_path: Path) -> None:
    shell = f"{sys.executable} {SCRIPT} --training_budget 5000000 >&- 2>err; echo $?; wc -c <err"
    done = subprocess.run(["sh", "-c", shell], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["0", "0"]


def test_head_has_seen_enough(tmp_path: Path) -> None:
    shell = f"{{ {sys.executable} {SCRIPT} --model_config llama_7b; echo $? >status; }} | head -1"
    done = subprocess.run(["sh", "-c", shell], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == ("Number of parameters: 6738415616\n", "")
    assert (tmp_path / "status").read_text() == "0\n"


def test_no_cycles_are_collected(tmp_path: Path) -> None:
    code = "import gc; from counting.command import start_up; start_up.main = lambda: print(gc.isenabled()) or 0; "
    code += "start_up.command()"
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True, timeout=60)
    assert done.stdout == b"False\n"


# What a command leaves out.
OF_A_BUDGET = {"torch", "rich", "numpy", "counting.measurements", "counting.published", "counting.cost.design"}
OF_TABLES_AND_FIGURES = {
    "counting.command.jobs.figures",
    "counting.report.details",
    "counting.report.figures",
    "counting.report.page",
    "counting.report.printing",
    "dataclasses",
    "shlex",
}
OF_A_MODEL = {"rich", "transformers", "tomllib", "counting.published"}
OF_TIME_AND_CALIBRATION = {
    "counting.command.fit",
    "counting.cost.fit",
    "counting.measurements.work",
    "counting.cost.step_time",
    "counting.calibration",
    "counting.command.calibrate",
    "counting.report.screen.calibration",
}


@pytest.mark.parametrize(
    ("flags", "left_out"),
    [
        (["--training_budget", "5M"], OF_A_BUDGET | OF_TABLES_AND_FIGURES | OF_TIME_AND_CALIBRATION),
        (["--training_budget", "5000000", "--json"], {"torch", "rich", "counting.cost.comparison"}),
        (["fit", "none.csv", "--output", "law.json"], {"torch", "rich", "numpy", "counting.report"}),
        (["--published", "--claim", "--json", "--bad"], {"torch", "rich", "counting.report", "counting.published"}),
        (["--model_config", "llama_7b"], OF_A_MODEL | OF_TIME_AND_CALIBRATION),
        (
            ["--model_config", "llama_7b", "--layout", "fsdp=2,pp=2", "--reserved", "off"],
            OF_A_MODEL | OF_TIME_AND_CALIBRATION,
        ),
    ],
    ids=["a budget", "its JSON", "a fit of no file", "a flag that is unknown", "a model", "a pipeline"],
)
def test_what_is_not_needed_is_not_imported(flags: list[str], left_out: set[str], tmp_path: Path) -> None:
    code = (
        f"import sys; from model_training_cost_analysis import main; main({flags!r});"
        f"print(sorted({left_out!r} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "[]"
