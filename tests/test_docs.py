"""What README and docs show is what the command prints; every command and every example in them is run."""

import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import counting
import torch_models
from counting.cost.scaling_laws import LAWS
from model_training_cost_analysis import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]}
PROMPT = "$ python3 model_training_cost_analysis.py "
LIBRARY = README.partition("## As a library")[2].partition("\n## ")[0] + PAGES["modules.md"].partition("\n## ")[0]


def blocks() -> list[tuple[str, list[str]]]:
    """(flags, the lines shown below them) of every command in the pages' indented blocks."""
    found: list[tuple[str, list[str]]] = []
    for text in PAGES.values():
        for line in text.splitlines():
            shown = line.removeprefix("    ").rstrip()
            if line.startswith("    ") and shown.startswith(PROMPT):
                found.append((shown.removeprefix(PROMPT), []))
            elif line.startswith("    ") and found:
                found[-1][1].append(shown)
            elif line:
                found.append(("", []))  # text ends a block
    return [(flags, lines) for flags, lines in found if flags]


BLOCKS = blocks()
PYTHON = re.compile(r"^```python\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
EXAMPLES = [
    pytest.param(code, id=f"{name} {number}")
    for name, text in PAGES.items()
    for number, code in enumerate(PYTHON.findall(text))
]


def test_readme_is_short_and_shows_every_job() -> None:
    assert len(README.splitlines()) <= 220
    assert 3 <= len(PAGES) - 1 <= 8
    shown = " ".join(flags for flags, _ in BLOCKS)
    for flag in ("llama_7b", "--gpus H100,B200", "--tokens", "--compare", "--training_budget", "--gpu_hours"):
        assert flag in shown
    assert all(len(lines) <= 20 for _, lines in BLOCKS)
    assert all(len(code.splitlines()) <= 25 for code in PYTHON.findall(README))


@pytest.mark.parametrize(("flags", "lines"), BLOCKS, ids=[flags for flags, _ in BLOCKS])
def test_block(
    flags: str,
    lines: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(shlex.split(flags)) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line != line.rstrip()] == []
    rest = iter(printed)
    for line in lines:
        if line.strip() != "…":
            assert line in rest, f"the page shows {line!r}, which is not printed, or not there"


@pytest.mark.parametrize("code", EXAMPLES)
def test_example_runs(code: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # generates no C++ code
    exec(compile(code, "example", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.sweep
@pytest.mark.parametrize("code", [example for example in EXAMPLES if "torch.compile" in example.values[0]])
def test_example_runs_as_it_stands(code: str) -> None:
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.endswith("the same after loading: True\n")


def test_how_far_the_laws_are_apart() -> None:
    """Tokens per parameter of the optimum at $5 million, as README says."""
    ratios = [counting.plan_budget(5e6, scaling_law=law.name).tokens_per_parameter for law in LAWS]
    assert f"{min(ratios):.0f} to {max(ratios):.0f} tokens per parameter" in README


def test_every_link_leads_somewhere() -> None:
    for name, text in PAGES.items():
        folder = (ROOT / name if (ROOT / name).exists() else ROOT / "docs" / name).parent
        links = re.findall(r"\]\(([^)#]+)\)", text)
        assert [link for link in links if "://" not in link and not (folder / link).exists()] == []
    assert all(f"docs/{name}" in README for name in PAGES if name != "README.md")


def test_every_public_name_is_in_a_table() -> None:
    for package in (counting, torch_models):
        assert [name for name in package.__all__ if f"`{name}" not in LIBRARY] == []


def test_every_room_is_in_contributing() -> None:
    tour = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = [path.parent for package in ("torch_models", "counting") for path in (ROOT / package).rglob("__init__.py")]
    assert len(rooms) >= 10
    assert [str(room.relative_to(ROOT)) for room in rooms if f"{room.name}/" not in tour] == []


# --- Pictures are what `make figures` draws ----------------------------------------------------------------------

PICTURES = dict(
    re.findall(
        r"model_training_cost_analysis\.py (.+ --figure docs/figures/(\w+\.svg)) --force",
        (ROOT / "Makefile").read_text(encoding="utf-8"),
    )
)


def words_of(picture: Path) -> list[str]:
    texts = ElementTree.fromstring(picture.read_text(encoding="utf-8")).iter("{http://www.w3.org/2000/svg}text")
    return [text.text or "" for text in texts]


def test_every_picture_is_made_by_a_documented_command() -> None:
    assert set(PICTURES.values()) == {path.name for path in (ROOT / "docs" / "figures").iterdir()}
    assert len(PICTURES) == 3
    for flags, name in PICTURES.items():
        assert f"\n{flags}\n" in PAGES["figures.md"]
        assert f"](figures/{name})" in PAGES["figures.md"]


@pytest.mark.parametrize(("flags", "name"), PICTURES.items())
def test_picture_says_what_the_command_draws(flags: str, name: str, folder: Path) -> None:
    """The same words and numbers; lines may differ by a version of matplotlib."""
    assert main(shlex.split(flags.replace("docs/figures/", ""))) == 0
    assert words_of(folder / name) == words_of(ROOT / "docs" / "figures" / name)
