"""Figures on the command line: what each job draws, files that are whole or not there, and errors of one line."""

import argparse
import json
import sys
from pathlib import Path

import pytest

from counting.command.flags.parser import flags_parser
from counting.command.jobs.figures import figures_of, kinds_of_job
from counting.report.figures import FIGURE_KINDS, FIGURE_SIZES
from model_training_cost_analysis import main
from tests.counting.report.figures.results import fitted_law
from tests.foreign_families import PHI3
from tests.shrunken import LLAMA

SMALL = "--model_config small.json"


@pytest.fixture(autouse=True)
def small(folder: Path) -> Path:
    (folder / "small.json").write_text(json.dumps(LLAMA | {"num_hidden_layers": 2, "max_position_embeddings": 32}))
    (folder / "phi3.json").write_text(json.dumps(PHI3))
    return folder


def options_of(flags: str) -> argparse.Namespace:
    return flags_parser().parse_args(flags.split())


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix not in (".json", ".toml"))


JOBS = {
    SMALL: ("memory", "parameters", "flops"),
    f"{SMALL} --layout fsdp=2": ("ranks", "parameters", "flops"),
    f"{SMALL} --tokens 1T --gpus H100": ("bill", "memory", "parameters", "flops"),
    f"{SMALL} small.json --tokens 1T --gpus H100 --compare": ("comparison", "memory", "parameters", "flops"),
    "--training_budget 5M": ("law",),
    f"--training_budget 5M {SMALL}": ("law", "memory", "parameters", "flops"),
}


@pytest.mark.parametrize(("flags", "kinds"), JOBS.items())
def test_kinds_of_a_job(flags: str, kinds: tuple[str, ...]) -> None:
    assert kinds_of_job(options_of(flags)) == kinds


@pytest.mark.parametrize(("flags", "kinds"), list(JOBS.items())[1:])
def test_the_results_of_a_job_have_its_kinds(flags: str, kinds: tuple[str, ...], small: Path) -> None:
    """Each kind is drawn; the first one is what a file without a kind gets."""
    figures = " ".join(f"{kind}={kind}.svg" for kind in kinds)
    assert main([*flags.split(), "--figure", *figures.split(), "default.svg"]) == 0
    assert written(small) == sorted([*(f"{kind}.svg" for kind in kinds), "default.svg"])
    assert (small / "default.svg").read_bytes() == (small / f"{kinds[0]}.svg").read_bytes()


def test_a_model_alone_shows_its_parameters_and_beside_gpus_its_memory() -> None:
    assert [each.kind for each in figures_of(options_of(f"{SMALL} --figure x.svg"))] == ["parameters"]
    assert [each.kind for each in figures_of(options_of(f"{SMALL} --gpus H100 --figure x.svg"))] == ["memory"]


def test_help_names_every_kind_and_size() -> None:
    said = flags_parser().format_help()
    assert f"KIND: {', '.join(FIGURE_KINDS)}" in " ".join(said.split())
    assert f"{{{','.join(FIGURE_SIZES)}}}" in said


def test_slide_of_two_models_with_one_command(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--model_config deepseek_v3 llama_3_1_405b --compare --tokens 15T --gpus H100 --figure slide.svg"
    assert main(flags.split()) == 0
    drawn = (small / "slide.svg").read_text()
    for words in ("DeepSeek-V3 against Llama-3.1-405B, trained on 15 T tokens", "$9.22 M", "$79.8 M", "671 B, 37.6 B"):
        assert words in drawn
    assert "3.07 M  $9.22 M" in capsys.readouterr().out, "the screen says the same"


def test_sizes_and_formats(small: Path) -> None:
    assert main(f"{SMALL} --figure a.PNG flops=b.pdf --figure=flops=c.svg --figure_size column".split()) == 0
    assert (small / "a.PNG").read_bytes()[:4] == b"\x89PNG"
    assert (small / "b.pdf").read_bytes()[:4] == b"%PDF"
    assert 'width="237.6pt"' in (small / "c.svg").read_text()


def test_figures_of_a_plan(small: Path) -> None:
    (small / "plan.toml").write_text('model_config = "small.json"\nfigure = ["a.svg", "flops=b.svg"]\n')
    assert main(["--plan", "plan.toml"]) == 0
    assert written(small) == ["a.svg", "b.svg"]


def test_a_result_as_plan_draws_nothing_again(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"{SMALL} --json --figure memory=a.svg --figure_size column".split()) == 0
    document = capsys.readouterr().out
    assert json.loads(document)["analyses"][0]["timeline"]["micro_batches"] == 1
    (small / "result.json").write_text(document)
    assert main(["--plan", "result.json"]) == 0
    assert written(small) == ["a.svg"]


BAD = {
    f"{SMALL} --figure spam=x.svg": "--figure = 'spam=x.svg': spam is not known: choose from memory, parameters, flops",
    f"{SMALL} --figure law=x.svg": "--figure = 'law=x.svg': law is of another job: choose from memory, parameters, f",
    f"{SMALL} --layout fsdp=2 --figure memory=x.svg": "memory is of another job: choose from ranks, parameters, flops",
    f"{SMALL} --figure x.gif": "--figure = 'x.gif': must end in one of .svg, .png, .pdf, which says the format",
    f"{SMALL} --figure flops": "--figure = 'flops': must end in one of .svg, .png, .pdf, which says the format",
    f"{SMALL} --figure x.svg.": "--figure = 'x.svg.': must end in one of .svg, .png, .pdf",
    f"{SMALL} --figure flops=": "--figure = 'flops=': must name a file, as figure.svg or parameters=figure.svg",
    f"{SMALL} --figure =x.svg": "--figure = '=x.svg': must name a kind before =, as parameters=x.svg, or a file alone",
    f"{SMALL}{' small.json' * 8} --figure flops=x.svg": "flops shows at most 8 models in one figure, not 9: name fewer",
    f"{SMALL}{' small.json' * 4} --figure memory=x.svg": "memory shows at most 4 models in one figure, not 5",
    f"{SMALL}{' small.json' * 4} --tokens 1T --gpus H100,A100,B200,H200 --figure x.svg": "not 4 GPUs and 20 lines",
    f"{SMALL} --figure=": "--figure = '': must name a file, as figure.svg or parameters=figure.svg",
    f"{SMALL} --figure x.svg x.svg": "--figure = 'x.svg': is given twice",
    f"{SMALL} --figure x.svg flops=./x.svg": "./x.svg: --figure x.svg and --figure flops=./x.svg name one file",
    f"{SMALL} --figure x.svg --html x.svg": "--html and --figure x.svg name one file: name another for one of them",
    f"{SMALL} --figure no/x.svg": "error: no/x.svg: there is no folder no",
    f"{SMALL} --figure y.svg old.svg": "old.svg: exists already; give --force to replace it, or another name",
    f"{SMALL} --figure": "argument --figure: expected at least one argument",
    f"{SMALL} --figure_size slide": "--figure_size needs --figure",
    f"{SMALL} --figure x.svg --figure_size poster": "argument --figure_size: invalid choice: 'poster'",
    "--figure x.svg": "--figure needs --model_config or --training_budget",
    "--claim --figure x.svg": "--figure needs --model_config or --training_budget",
    "--model_config phi3.json --figure memory=x.svg": "without allocator and time: leave out --figure memory",
}


@pytest.mark.parametrize(("flags", "rule"), BAD.items())
def test_errors_are_one_line_and_nothing_is_written(
    flags: str, rule: str, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small / "old.svg").write_text("old")
    assert main(flags.split()) == 2
    out, error = capsys.readouterr()
    assert rule in error
    assert (out, error.count("\n")) == ("", 1)
    assert written(small) == ["old.svg"]
    assert (small / "old.svg").read_text() == "old"


FIT = "fit runs.csv --output law.json"
BAD_FITS = {
    f"{FIT} --figure bill=x.svg": "--figure = 'bill=x.svg': bill is of another job: choose from fit",
    f"{FIT} --figure x.txt": "--figure = 'x.txt': must end in one of .svg, .png, .pdf",
    f"{FIT} --figure x.svg fit=x.svg": "x.svg: --figure x.svg and --figure fit=x.svg name one file",
    f"{FIT} --figure old.svg": "old.svg: exists already; give --force to replace it, or another name",
    f"{FIT} --figure no/x.svg": "no/x.svg: there is no folder no",
    f"{FIT} --figure_size column": "--figure_size needs --figure",
}


@pytest.mark.parametrize(("flags", "rule"), BAD_FITS.items())
def test_errors_of_fit_come_before_it_fits(
    flags: str, rule: str, small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("counting.command.fit.command._fitted")
    (small / "runs.csv").write_text("a test does not read it")
    (small / "old.svg").write_text("old")
    assert main(flags.split()) == 2
    assert rule in capsys.readouterr().err
    assert written(small) == ["old.svg", "runs.csv"]


def test_figure_of_a_fit(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("counting.command.fit.command._fitted", lambda options, progress: fitted_law())
    (small / "runs.csv").write_text("a test does not read it")
    assert main(f"{FIT} --json --figure a.svg --figure fit=b.png --figure_size column".split()) == 0
    assert written(small) == ["a.svg", "b.png", "runs.csv"]
    assert "fitted to 7 runs" in (small / "a.svg").read_text()


def test_force_replaces(small: Path) -> None:
    (small / "old.svg").write_text("old")
    assert main(f"{SMALL} --figure old.svg --force".split()) == 0
    assert (small / "old.svg").read_text().startswith("<?xml")


def test_a_figure_that_cannot_be_drawn_leaves_no_file(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All figures are drawn before the first file is written."""

    def fail(*_: object, **__: object) -> bytes:
        raise RuntimeError("no memory")

    monkeypatch.setattr("counting.report.figures.drawing.sheet.Sheet.save", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        main(f"{SMALL} --figure x.svg flops=y.svg".split())
    assert written(small) == []


def test_without_matplotlib_the_error_names_the_extra(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(f"{SMALL} --figure x.svg".split()) == 2
    rule = 'a figure needs matplotlib, of the extra figures: pip install "model-training-cost-analysis[figures]"'
    assert capsys.readouterr().err == f"error: {rule}\n"
    assert written(small) == []


def test_a_matplotlib_that_is_broken_is_an_error_of_one_line(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page is made all the same, and says it."""
    (small / "broken").mkdir()
    (small / "broken" / "matplotlib.py").write_text("raise ImportError('no shared library:\\n libx.so')")
    monkeypatch.delitem(sys.modules, "matplotlib")
    monkeypatch.syspath_prepend(small / "broken")
    assert main(f"{SMALL} --figure x.svg".split()) == 2
    rule = "matplotlib cannot be imported (no shared library: libx.so): install it again, of the extra figures"
    error = capsys.readouterr().err
    assert error.startswith(f"error: {rule}")
    assert error.count("\n") == 1
    assert main(f"{SMALL} --html x.html".split()) == 0
    assert "no shared library: libx.so" in (small / "x.html").read_text()
