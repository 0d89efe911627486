"""The page in a browser: no window is too narrow for it, it is legible in light and dark, and in print it is open."""

import json
import re
import shutil
import subprocess
from html import escape
from pathlib import Path
from typing import Any

import pytest

from tests.counting.report.page.made import every_kind, page_of

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

LIGHT, DARK = 1, 0  # of Chromium's setting preferredColorScheme
# A window of Chromium is not narrower than 500 pixels, but a frame is.
FRAMED = """<!DOCTYPE html><html style="color-scheme: light dark"><body>
<iframe srcdoc="{page}" width="{width}" height="800" style="border: 0"></iframe>
<script>
addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument, inside = page.documentElement;
  const outsideOfTables = [...page.querySelectorAll("body *")].filter(node => !node.closest(".scroll table"));
  document.body.textContent = "measured " + JSON.stringify({{
    window: inside.clientWidth,
    page: inside.scrollWidth,
    right: Math.max(...outsideOfTables.map(node => node.getBoundingClientRect().right)),
    scrolls: [...page.querySelectorAll(".scroll")].some(box => box.scrollWidth > box.clientWidth),
    ink: getComputedStyle(page.body).color,
    paper: getComputedStyle(inside).backgroundColor,
    filters: [...page.querySelectorAll("figure img")].map(image => getComputedStyle(image).filter),
    cards: [...page.querySelectorAll("figure img")].map(image => getComputedStyle(image).backgroundColor),
    hints: [...page.querySelectorAll(".scroll")].map(box => getComputedStyle(box).backgroundAttachment),
  }});
}});
</script></body></html>"""


@pytest.fixture(scope="module")
def page() -> str:
    """A page with wide tables."""
    return page_of(every_kind()["ranks"])


def chromium(page: str, folder: Path, *flags: str) -> str:
    """What a headless Chromium prints of the page, with these flags."""
    (folder / "page.html").write_text(page, encoding="utf-8")
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={folder / 'profile'}",
    ]
    process = subprocess.run(
        [*command, *flags, (folder / "page.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return process.stdout


def measured(page: str, folder: Path, width: int, scheme: int) -> dict[str, Any]:
    """What is found of the page, with its folds open, in a frame of `width` pixels."""
    framed = FRAMED.format(page=escape(page.replace("<details>", "<details open>")), width=width)
    flags = ("--window-size=1400,900", f"--blink-settings=preferredColorScheme={scheme}", "--hide-scrollbars")
    shown = chromium(framed, folder, *flags, "--dump-dom")
    found = re.search(r"measured (\{.*\})", shown)
    assert found is not None, shown[:500]
    result: dict[str, Any] = json.loads(found[1])
    return result


def luminance(colour: str) -> float:
    """The relative luminance of rgb(r, g, b), as the Web Content Accessibility Guidelines 2.1 define it."""
    channels = [int(channel) / 255 for channel in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(("width", "scheme"), [(390, LIGHT), (390, DARK), (1280, LIGHT), (1280, DARK)])
def test_it_fits_the_window_and_is_legible(width: int, scheme: int, page: str, tmp_path: Path) -> None:
    """Wide tables scroll within their boxes; the contrast is that of the guidelines' level AAA, 7 to 1."""
    found = measured(page, tmp_path, width, scheme)
    assert found["window"] == width
    assert found["page"] <= width
    assert found["right"] <= width
    assert found["scrolls"] == (width == 390)
    assert set(found["hints"]) == {"local, local, scroll, scroll"}, "covers move with the table, shadows do not"
    ink, paper = luminance(found["ink"]), luminance(found["paper"])
    assert (ink < paper) == (scheme == LIGHT)
    darker, lighter = sorted((ink, paper))
    assert (lighter + 0.05) / (darker + 0.05) >= 7


def test_figures_have_the_same_colours_in_dark_mode(page: str, tmp_path: Path) -> None:
    """No filter changes them; they stand on a white card, as their text is dark."""
    found = measured(page, tmp_path, 1280, DARK)
    assert found["filters"]
    assert set(found["filters"]) == {"none"}
    assert set(found["cards"]) == {"rgb(255, 255, 255)"}


def test_in_print_every_table_is_open(page: str, tmp_path: Path) -> None:
    """As many pages of paper as where all folds are opened by hand, and more than where all stay closed."""
    sheets = {}
    closed = page.replace("::details-content", "::no-such-part")
    for name, content in (("page", page), ("opened", page.replace("<details>", "<details open>")), ("closed", closed)):
        (tmp_path / name).mkdir()
        pdf = tmp_path / name / "page.pdf"
        chromium(content, tmp_path / name, f"--print-to-pdf={pdf}")
        sheets[name] = len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes()))
    assert sheets["page"] == sheets["opened"] > sheets["closed"] > 0
