"""The pictures of README and docs are what `make figures` draws."""

import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest

from model_training_cost_analysis import main

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "figures.md").read_text(encoding="utf-8")
COMMANDS = dict(
    re.findall(
        r"model_training_cost_analysis\.py (.+ --figure docs/figures/(\w+\.svg)) --force",
        (ROOT / "Makefile").read_text(encoding="utf-8"),
    )
)


def words_of(picture: Path) -> list[str]:
    texts = ElementTree.fromstring(picture.read_text(encoding="utf-8")).iter("{http://www.w3.org/2000/svg}text")
    return [text.text or "" for text in texts]


def test_every_picture_is_made_by_a_documented_command() -> None:
    assert set(COMMANDS.values()) == {path.name for path in (ROOT / "docs" / "figures").iterdir()}
    assert len(COMMANDS) == 3
    for flags, name in COMMANDS.items():
        assert f"\n{flags}\n" in PAGE
        assert f"](figures/{name})" in PAGE


@pytest.mark.parametrize(("flags", "name"), COMMANDS.items())
def test_picture_says_what_the_command_draws(flags: str, name: str, folder: Path) -> None:
    """The same words and numbers; lines may differ by a version of matplotlib."""
    assert main(shlex.split(flags.replace("docs/figures/", ""))) == 0
    assert words_of(folder / name) == words_of(ROOT / "docs" / "figures" / name)
