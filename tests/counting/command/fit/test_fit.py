"""The sub-command: what it prints and writes, and its errors."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from counting.command.fit import command as fit_command
from counting.cost.fit import parametric
from counting.cost.scaling_laws import LAWS, find_law, read_law
from counting.cost.scaling_laws.allocation import allocation_laws
from counting.report.format import NONE
from model_training_cost_analysis import main
from tests.counting.cost.fit.known_law import FEW_STARTS, as_csv, runs_of

OUTPUT = "--output law.json --resamples 100"
REPLACED = "--output would replace what fit reads: name another file for --output"
FLOPS = "--training_flops = "
BUDGETS = (1e18, 1e19, 1e20, 1e21, 1e22)


@pytest.fixture(autouse=True)
def few_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parametric, "GRID", FEW_STARTS)
    monkeypatch.setattr(parametric, "CHECKED_RESAMPLES", 2)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def runs(folder: Path) -> Path:
    """Forty runs of a known law, with noise."""
    (folder / "runs.csv").write_text(as_csv(runs_of(budgets=BUDGETS, sizes=8, noise=0.003)))
    return folder


def run(flags: str, capsys: pytest.CaptureFixture[str], *, warned: bool = True) -> str:
    assert main(["fit", *flags.split()]) == 0
    printed = capsys.readouterr()
    assert bool(printed.err) == warned
    assert all(line.startswith("warning: ") for line in printed.err.splitlines())
    return printed.out


def error_of(flags: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["fit", *flags.split()]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err.rstrip("\n")


def test_runs_become_a_laws_file(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    screen = run(f"runs.csv {OUTPUT}", capsys)
    lines = screen.splitlines()
    assert lines[0] == "A law of 40 runs: N 31.6 M to 31.6 B, D 527 M to 527 B"
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 30
    assert lines[-1] == "  written         law.json, the law law"
    assert "  not in the file training_flops = 6 × parameters × tokens" in lines
    law = read_law("law.json")
    assert (law.name, law.runs, law.source) == ("law", 40, "fitted to the runs of runs.csv")
    assert len(law.bootstrap) == 100
    (line,) = [line for line in lines if line.startswith("  E, irreducible loss")]
    constant = law.irreducible_loss
    assert constant.low is not None
    assert constant.high is not None
    assert [float(part) for part in line.split()[3:]] == pytest.approx(
        [constant.value, constant.low, constant.high], rel=1e-3
    )


def test_the_file_is_a_law_of_a_budget(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(f"runs.csv {OUTPUT}", capsys)
    flags = "--training_budget 100k --mfu 0.4 --gpus H100 --scaling_law law.json --json"
    assert main(flags.split()) == 0
    budget = json.loads(capsys.readouterr().out)["budget"]
    law = read_law("law.json")
    assert budget["law"]["name"] == "law"
    assert budget["law"]["parameter_exponent"]["value"] == law.parameter_exponent.value
    assert (
        budget["intervals"]["parameters"]["low"]
        < budget["optimal_parameters"]
        < budget["intervals"]["parameters"]["high"]
    )


def test_json_has_the_law_the_runs_and_both_approaches(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(run(f"runs.csv {OUTPUT} --json --training_flops 1e20,1e25", capsys))
    fit = document["fit"]
    written: dict[str, Any] = json.loads((runs / "law.json").read_text())
    assert {name: fit["law"][name] for name in written} == written
    assert len(fit["runs"]) == 40
    assert fit["runs"][0]["line"] == 2
    assert [at["training_flops"] for at in fit["optima"]] == [1e20, 1e25]
    assert fit["check"] == {"resamples": 2, "agreed": 2, "largest_excess": pytest.approx(0, abs=1e-6)}
    assert len(fit["isoflop"]["budgets"]) == 5
    assert fit["columns"] == {"parameters": "parameters", "tokens": "tokens", "loss": "loss"}
    assert document["warnings"] == fit["warnings"]
    assert any("at 1e+25 FLOPs the optimum lies outside the runs" in warning for warning in document["warnings"])


def test_the_same_seed_writes_the_same_file(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(f"runs.csv {OUTPUT} --seed 3", capsys)
    first = (runs / "law.json").read_bytes()
    run(f"runs.csv {OUTPUT} --seed 3 --force", capsys)
    assert (runs / "law.json").read_bytes() == first
    run(f"runs.csv {OUTPUT} --seed 4 --force", capsys)
    assert (runs / "law.json").read_bytes() != first


def test_columns_of_other_names(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "own.csv").write_text(as_csv(runs_of(budgets=BUDGETS, noise=0.003), "size,seen,final"))
    document = json.loads(run(f"own.csv {OUTPUT} --json --columns parameters=size,tokens=seen,loss=final", capsys))
    assert document["fit"]["columns"] == {"parameters": "size", "tokens": "seen", "loss": "final"}


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ("my-runs.json", "my-runs"),
        ("a,b.json", "ab"),
        (",.json", "fitted"),
        ("Course.json", "fitted"),
        *((f"{law.name}.json", "fitted") for law in (*LAWS, *allocation_laws())),
    ],
)
def test_the_law_is_named_as_its_file(runs: Path, output: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(f"runs.csv --output {output} --resamples 100", capsys)
    assert find_law(output).name == name


def test_a_law_without_an_optimum_is_written(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The loss does not depend on D, so that its term is any."""
    some = runs_of((1.7, 400, 0, 0.34, 0.3), budgets=BUDGETS, sizes=8, noise=0.003)
    (runs / "worse.csv").write_text(
        as_csv([msgspec.structs.replace(run, loss=1e-5 * run.parameters**0.5 * run.tokens**0.1) for run in some])
    )
    (runs / "without.csv").write_text(as_csv(some))
    for name in ("worse", "without"):
        screen = run(f"{name}.csv --output {name}.json --resamples 100 --csv rows --force", capsys)
        assert max(map(len, screen.splitlines())) <= 80
        assert "  undecided " in screen
        assert find_law(f"{name}.json").bootstrap == ()
        assert (runs / "rows" / "fit.csv").is_file()
    assert find_law("without.json").token_exponent.low is None
    screen = run("worse.csv --output worse.json --resamples 100 --force", capsys)
    assert f"  1e+22 FLOPs     {NONE}: the law has N " in screen


@pytest.mark.parametrize("when", ["the fit", "the check"])
def test_an_interrupt_leaves_nothing(runs: Path, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(parametric, {"the fit": "minimise", "the check": "_check"}[when], interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(["fit", "runs.csv", *OUTPUT.split()])
    assert [path.name for path in runs.iterdir()] == ["runs.csv"]


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ("", "fit needs a file of training runs: fit runs.csv --output law.json"),
        ("runs.csv", "fit needs --output: name the file to write, as --output law.json"),
        ("runs.csv --output runs.csv", f"runs.csv: {REPLACED}"),
        ("runs.csv --output other.json", "other.json: exists already; give --force to replace it, or another name"),
        ("none.csv --output law.json", "none.csv: no such file"),
        ("runs.csv --output law.json --fast", "unrecognized arguments: --fast; fit --help lists the flags"),
        (f"runs.csv {OUTPUT} --resamples 10", "--resamples = 10: must be a whole number from 100 to 5,000"),
        (f"runs.csv {OUTPUT} --resamples many", "--resamples = 'many': must be a whole number"),
        (f"runs.csv {OUTPUT} --seed 1.5", "--seed = '1.5': must be a whole number"),
        (f"runs.csv {OUTPUT} --training_flops 1e20,x", f"{FLOPS}'1e20,x': must be FLOPs, as 5.76e23 or 1e21,1e22"),
        (f"runs.csv {OUTPUT} --training_flops 0", f"{FLOPS}0.0: must be FLOPs from 1 to 1e+36, as 5.76e23"),
        (
            f"runs.csv {OUTPUT} --columns size=N",
            "--columns = 'size=N': must say which column is which, of parameters, tokens, training_flops, loss, as "
            "parameters=n_params,tokens=seen",
        ),
        (f"runs.csv {OUTPUT} --columns loss=a,loss=b", "--columns = 'loss=a,loss=b': names loss twice"),
        (f"runs.csv {OUTPUT} --columns loss=a,tokens=a", "--columns = 'loss=a,tokens=a': gives the column a twice"),
        (
            f"runs.csv {OUTPUT} --columns loss=val",
            "--columns = 'loss=val': runs.csv has no column of that name: it has parameters, tokens, loss",
        ),
        (
            f"other.json {OUTPUT}",
            "other.json: line 1: has no column for two of parameters, tokens and training_flops and loss: it has {}; "
            "name them parameters (N, params), tokens (D), training_flops (C, flops) and loss, of N, D and C two or "
            "all, or say which is which, as --columns parameters=n_params,tokens=seen",
        ),
        (f"few.csv {OUTPUT}", "few.csv: 6 runs are too few: five constants and their residuals need at least 8"),
        (
            f"one.csv {OUTPUT}",
            "one.csv: all 9 runs are of one budget, 1e+20 FLOPs: more parameters are always fewer tokens there, so "
            "nothing tells their effects apart: give runs of at least two budgets, better five",
        ),
        (
            f"twice.csv {OUTPUT}",
            "twice.csv: line 6: repeats line 5, number for number: give each run once; two runs of one size have two "
            "losses",
        ),
    ],
)  # fmt: skip
def test_errors_are_one_line(runs: Path, flags: str, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "other.json").write_text("{}")
    (runs / "few.csv").write_text(as_csv(runs_of(sizes=3, budgets=(1e18, 1e19))))
    (runs / "one.csv").write_text(as_csv(runs_of(sizes=9, budgets=(1e20,))))
    some = as_csv(runs_of()).splitlines()
    (runs / "twice.csv").write_text("\n".join([*some[:5], some[4], *some[5:]]))
    before = sorted(path.name for path in runs.iterdir())
    assert error_of(flags, capsys) == f"error: {error}"
    assert sorted(path.name for path in runs.iterdir()) == before


def test_help_lists_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    printed = capsys.readouterr().out
    flags = {option for action in fit_command.fit_parser()._actions for option in action.option_strings}
    assert {"--columns", "--output", "--training_flops", "--resamples", "--seed", "--force", "--json"} <= flags
    assert all(flag in printed for flag in flags)


def as_process(folder: Path, code: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[4])}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_fit_needs_numpy_and_neither_torch_nor_scipy(runs: Path) -> None:
    code = (
        "import sys; from counting.cost.fit import parametric; from model_training_cost_analysis import main;"
        f"parametric.GRID = {FEW_STARTS!r}; status = main(['fit', 'runs.csv', *{OUTPUT.split()!r}]);"
        "print(status, sorted({'numpy', 'torch', 'scipy', 'rich', 'counting.measurements'} & set(sys.modules)))"
    )
    with as_process(runs, code) as process:
        printed, _ = process.communicate(timeout=60)
    assert printed.splitlines()[-1] == "0 ['numpy']"


def test_a_fit_can_be_stopped(runs: Path) -> None:
    """An interrupt in the middle of the search, on its threads: exit status 130, no message and no file."""
    code = (
        "from counting.cost.fit import work; from counting.command import start_up; import os, signal, sys;"
        "begun = work.in_threads; work.in_threads = lambda work, parts: "
        "begun(lambda part: (os.kill(os.getpid(), signal.SIGINT), work(part))[1], parts);"
        "from counting.cost.fit import parametric; parametric.in_threads = work.in_threads;"
        f"sys.argv = ['', 'fit', 'runs.csv', *{OUTPUT.split()!r}]; start_up.command()"
    )
    with as_process(runs, code) as process:
        printed, error = process.communicate(timeout=60)
    assert (process.returncode, printed, error) == (130, "", "")
    assert [path.name for path in runs.iterdir()] == ["runs.csv"]
