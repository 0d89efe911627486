"""The page from the command line: what it holds beside the answer, and what is refused before anything is measured."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from model_training_cost_analysis import main
from tests.counting.report.page.parsed import parsed, saved_text
from tests.shrunken import LLAMA

TINY = ["--model_config", "tiny <i>", "--seq_len", "16"]


@pytest.fixture
def tiny(folder: Path) -> Path:
    """A folder with a model that has markup in its name."""
    (folder / "tiny <i>").write_text(json.dumps(LLAMA))
    return folder


def test_the_page_has_the_command_its_plan_and_the_document(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The document is that of --json, and the plan repeats it."""
    assert main([*TINY, "--html", "p.html", "--json"]) == 0
    document = capsys.readouterr().out
    page = parsed((tiny / "p.html").read_text(encoding="utf-8"))
    assert saved_text(page) == document.rstrip("\n")
    command, plan = page.all("code")
    program, script, *typed = shlex.split(command.text)
    assert (program, script) == ("python3", "model_training_cost_analysis.py")
    assert typed == [*TINY, "--html", "p.html", "--json"]
    (tiny / "plan.toml").write_text(plan.text, encoding="utf-8")
    assert main(["--plan", "plan.toml", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    first = json.loads(document)
    assert first.pop("plan") == again.pop("plan") | {"html": "p.html"}
    assert first == again


def test_the_answer_is_printed_as_ever(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(TINY) == 0
    printed = capsys.readouterr()
    assert main([*TINY, "--html", "p.html"]) == 0
    assert capsys.readouterr() == printed


def error_of(flags: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*TINY, *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


@pytest.fixture
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("counting.command.jobs.analyses.analyze", pytest.fail)


@pytest.mark.usefixtures("nothing_measured")
@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ("--html there.html", "there.html: exists already; give --force to replace it, or another name"),
        ("--html no/p.html", "no/p.html: there is no folder no"),
        ("--html folder.html --force", "folder.html: is a folder; name a file in it"),
        ("--html x.txt", "--html = 'x.txt': must end in .html or .htm, by which a browser knows a page"),
        ("--html -", "--html = '-': must end in .html or .htm, by which a browser knows a page"),
        ("--html html", "--html = 'html': must end in .html or .htm, by which a browser knows a page"),
        ("--html ''", "--html '': must name a file"),
        (
            "--html p.HTM --trace_memory p.HTM",
            "p.HTM: --trace_memory and --html name one file: name another for one of them",
        ),
        (
            "--html 'tiny <i>' --force",
            "tiny <i>: --html would replace what --model_config reads: name another file for --html",
        ),
    ],
)
def test_what_cannot_be_written_is_refused(
    flags: str, error: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tiny / "there.html").write_text("mine")
    (tiny / "folder.html").mkdir()
    before = sorted(tiny.iterdir())
    assert error_of(shlex.split(flags), capsys) == f"error: {error}\n"
    assert sorted(tiny.iterdir()) == before
    assert (tiny / "there.html").read_text() == "mine"


def test_the_suffix_may_have_capitals_and_three_letters(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--html", "P.HTM"]) == 0
    assert (tiny / "P.HTM").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_force_replaces(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny / "there.html").write_text("mine")
    assert main([*TINY, "--html", "there.html", "--force"]) == 0
    assert (tiny / "there.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_nothing_is_half_written(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the disk is full, there is one line, no file and no rest of one."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = sorted(tiny.iterdir())
    monkeypatch.setattr("counting.command.output_file.os.fsync", full)
    assert error_of(["--html", "p.html"], capsys) == "error: p.html: cannot be written: No space left on device\n"
    assert sorted(tiny.iterdir()) == before


def test_only_a_page_takes_its_modules(tiny: Path) -> None:
    """Neither matplotlib nor what makes pages is loaded without need."""
    code = "import sys; from model_training_cost_analysis import main; main(sys.argv[1:]); "
    code += "print([name for name in ('matplotlib', 'html', 'counting.report.page') if name in sys.modules])"
    root = Path(__file__).resolve().parents[4]
    process = subprocess.run(
        [sys.executable, "-c", code, "--training_budget", "1M"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.splitlines()[-1] == "[]"
