"""What README shows is what the command prints: every line of every block, in order."""

import re
import shlex
from pathlib import Path

import pytest

import counting
import torch_models
from model_training_cost_analysis import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROMPT = "$ python3 model_training_cost_analysis.py "


def blocks() -> list[tuple[str, list[str]]]:
    """(flags, the lines shown below them) of every command in README's indented blocks."""
    found: list[tuple[str, list[str]]] = []
    for line in README.splitlines():
        shown = line.removeprefix("    ").rstrip()
        if line.startswith("    ") and shown.startswith(PROMPT):
            found.append((shown.removeprefix(PROMPT), []))
        elif line.startswith("    ") and found:
            found[-1][1].append(shown)
        elif line:
            found.append(("", []))  # text ends a block
    return [(flags, lines) for flags, lines in found if flags]


BLOCKS = blocks()


def test_readme_shows_the_main_job() -> None:
    shown = " ".join(flags for flags, _ in BLOCKS)
    for flag in ("llama_7b_config.json", "deepseek_v3_config.json", "--training_budget", "--design"):
        assert flag in shown


@pytest.mark.parametrize(("flags", "lines"), BLOCKS, ids=[flags for flags, _ in BLOCKS])
def test_block(
    flags: str,
    lines: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(flags)) == 0
    printed = iter([line.rstrip() for line in capsys.readouterr().out.splitlines()])
    for line in lines:
        if line.strip() != "…":
            assert line in printed, f"README shows {line!r}, which is not printed, or not there"


def test_example_of_loading_weights_runs(capsys: pytest.CaptureFixture[str]) -> None:
    section = README.partition("### Load pretrained weights")[2].partition("\n### ")[0]
    code, *others = re.findall(r"^```python\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    assert others == []
    exec(compile(code, "README.md", "exec"), {})
    assert re.fullmatch(r"largest difference of a logit: \S+\n", capsys.readouterr().out)


def test_example_of_the_library_runs(capsys: pytest.CaptureFixture[str]) -> None:
    section = README.partition("### As a library")[2].partition("\n### ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("37,552,282,624 parameters are active, a step peaks at ")
    assert second.endswith(" GPU-hours")
    assert re.fullmatch(r"[\d,]+ FLOPs, [\d,]+ bytes at the peak", third)


def test_every_public_name_is_in_readme() -> None:
    section = README.partition("### As a library")[2].partition("\n### ")[0]
    for package in (counting, torch_models):
        assert [name for name in package.__all__ if f"`{name}" not in section] == []


def test_every_flag_is_in_readme(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    flags = set(re.findall(r"--[a-z_]+", capsys.readouterr().out)) - {"--help", "--version"}
    assert len(flags) >= 10
    assert {flag for flag in flags if flag not in README} == set()


def test_every_room_is_in_contributing() -> None:
    tour = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = [path.parent for package in ("torch_models", "counting") for path in (ROOT / package).rglob("__init__.py")]
    assert len(rooms) >= 10
    assert [str(room.relative_to(ROOT)) for room in rooms if f"{room.name}/" not in tour] == []
