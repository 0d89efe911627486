"""What a new user meets: --help with an example for each job, hyphens, missing packages, the end of make run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from counting.command.help import EXAMPLES, PROGRAM
from counting.cost.hardware import load_gpus
from counting.cost.scaling_laws import LAWS
from counting.recipes import OPTIMIZERS, PRECISIONS
from model_training_cost_analysis import main
from tests.shrunken import LLAMA

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "model_training_cost_analysis.py"


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


# --- Help ------------------------------------------------------------------------------------------------------


def help_at(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    return capsys.readouterr().out


def test_help_opens_with_an_example_for_each_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = help_at(80, monkeypatch, capsys)
    assert len(EXAMPLES) == 5
    opening, _, rest = shown.partition("options:")
    assert [line.strip() for line in opening.splitlines() if line.strip() in EXAMPLES] == list(EXAMPLES)
    assert len(opening.splitlines()) < 24, "on the first screen"
    assert max(map(len, shown.splitlines())) <= 80
    assert "--model_config" in rest


def test_help_lists_the_names_that_flags_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for width in (60, 80, 200):
        names = help_at(width, monkeypatch, capsys).partition("names that flags take:")[2]
        assert max(map(len, names.splitlines())) <= width
        listed = set(re.split(r",?\s+", names))
        models = {path.name.removesuffix("_config.json") for path in (ROOT / "configs").glob("*_config.json")}
        assert models | {entry.name for entry in (*load_gpus(), *LAWS, *PRECISIONS, *OPTIMIZERS)} <= listed


@pytest.mark.parametrize("lines", EXAMPLES.values(), ids=EXAMPLES)
def test_example_of_help_works_as_typed(lines: tuple[str, ...], folder: Path) -> None:
    """Copied to a shell as it stands, but for the program, which is in another folder."""
    typed = " \\\n      ".join(lines).replace(PROGRAM, f"{shlex.quote(sys.executable)} {shlex.quote(str(SCRIPT))}")
    typed = typed.replace("python3 -c", f"{shlex.quote(sys.executable)} -c")
    done = run(["sh", "-c", typed], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) > 50


# --- Hyphens ---------------------------------------------------------------------------------------------------


def test_flags_may_have_hyphens(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a-b_c.json").write_text(json.dumps(LLAMA))
    documents = []
    for flags in (
        "--model-config a-b_c.json --seq-len 16 --loss-chunk=8 --tokens 1B --gpus H100-PCIe --gpu-prices=H100-PCIe=2",
        "--model_config a-b_c.json --seq_len 16 --loss_chunk=8 --tokens 1B --gpus H100-PCIe --gpu_prices=H100-PCIe=2",
        "--model_config a-b_c.json --seq_len 16 --loss-chunk 8 --tokens 1B --gpus H100-PCIe --gpu-prices H100-PCIe=2",
    ):
        assert main(["--json", *flags.split()]) == 0
        documents.append(capsys.readouterr().out)
    assert documents[0] == documents[1] == documents[2]
    assert json.loads(documents[0])["analyses"][0]["name"] == "a-b_c"
    assert main(["--json", "--training-budget", "5M", "--tokens-per-second-per-gpu", "5"]) == 2
    assert capsys.readouterr().err == "error: --tokens_per_second_per_gpu needs --tokens\n"


# --- Packages that are missing ---------------------------------------------------------------------------------

TWO_WAYS_OUT = "run `make run`, then `. .venv/bin/activate`; or `pip install -c constraints.txt .`\n"


@pytest.mark.parametrize("flags", [["--help"], ["--training_budget", "5M"], ["--model_config", "llama_7b"], []])
def test_a_python_without_packages(flags: list[str], tmp_path: Path) -> None:
    done = run([sys.executable, "-E", "-S", str(SCRIPT), *flags], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: msgspec is not installed in ")
    assert done.stderr.endswith(TWO_WAYS_OUT)
    assert done.stderr.count("\n") == 1


WITHOUT = """
import sys
sys.modules[{package!r}] = None
import model_training_cost_analysis
sys.argv[1:] = {flags!r}
model_training_cost_analysis.command()
"""


@pytest.mark.parametrize("package", ["fvcore", "rich", "torch"])
def test_a_package_that_is_missed_later(package: str, tmp_path: Path) -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert package in {re.split("[<>=]", dependency)[0] for dependency in dependencies}
    code = WITHOUT.format(package=package, flags=["--model_config", "llama_7b", "--details"])
    done = run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {package} is not installed in ")
    assert done.stderr.endswith(TWO_WAYS_OUT)
    assert done.stderr.count("\n") == 1


def test_an_import_that_is_wrong_in_the_code_is_no_missing_package(tmp_path: Path) -> None:
    code = "from counting.command import start_up\ndef main():\n    import counting.no_such\nstart_up.main = main\n"
    code += "start_up.command()"
    done = run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 1
    assert "No module named 'counting.no_such'" in done.stderr
    assert "is not installed in" not in done.stderr


def test_who_imports_the_top_file_gets_pythons_own_error(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import model_training_cost_analysis"
    done = run([sys.executable, "-I", "-S", "-c", code], cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'msgspec'\n")


# --- make run --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_run_ends_by_saying_how_to_go_on(tmp_path: Path) -> None:
    """The environment is there already, and has this interpreter; what make says is then typed in a shell."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    for name in ("python", "python3"):
        (venv / "bin" / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        (venv / "bin" / name).chmod(0o755)
    (venv / "bin" / "activate").write_text(f"PATH={shlex.quote(str(venv / 'bin'))}:$PATH\n")
    done = run(["make", "--no-print-directory", "-o", f"{venv}/run.stamp", "run", f"VENV={venv}"], cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    said, commands = done.stdout.rsplit("\n\n", 1)
    assert "Number of parameters: 6738415616" in said
    first, *typed = commands.splitlines()
    assert first == "To go on, activate the environment; then these work as typed:"
    assert typed[0].strip() == f". {venv}/bin/activate"
    assert len(typed) == 3
    done = run(["sh", "-e", "-c", "\n".join(typed)], cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "H100" in done.stdout
