"""One self-contained HTML page of all results: no scripts, nothing that is fetched, below a megabyte."""

from collections.abc import Mapping
from importlib.resources import files
from typing import NamedTuple

from counting.report.details import details
from counting.report.document import json_document
from counting.report.format import dollars
from counting.report.page.elements import Html, element
from counting.report.page.parts import block_in_html, fold, folded, notes_list
from counting.report.page.pictures import Picture, pictures_in_html, pictures_of
from counting.report.page.plan import plan_in_toml, saved_document
from counting.report.plain import plain_text
from counting.report.results import Results
from counting.report.screen import screen_blocks
from counting.report.screen.lines import listed
from torch_models.errors import UserError

MOST_BYTES = 1_000_000
MOST_NAMES = 4  # of models in the title
SUBTITLE = "What training costs, each number with its conventions"
FOLDS = "Numbers that are shown rounded have all their digits under the pointer. In print, every table is open."
TOO_LARGE = "The JSON document is left out, because the page would be too large with it; the command prints it, too."
# The page may use its own styles and the pictures within it, and nothing else; a browser enforces it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Making(NamedTuple):
    """How a page is made: the command, the flags that repeat it, and the name and version of the program."""

    command: str
    plan: Mapping[str, object]
    program: str


class _Size(NamedTuple):
    """What is left out of a page that would be too large; most pages have all."""

    document: bool = True
    columns: bool = True  # the figures for narrow windows
    tables: bool = True


SIZES = (_Size(), _Size(document=False), _Size(document=False, columns=False), _Size(False, False, False))


def html_page(results: Results, design_path: str | None, making: Making) -> str:
    """The page, at most `MOST_BYTES` long in UTF-8: if need be with less: the rows of `SIZES` in turn.

    `design_path` is the file to which a designed model's config was written. Raises `UserError` if even the least page
    is longer.
    """
    pictures = pictures_of(results)
    pages = (_page(results, design_path, making, pictures, size) for size in SIZES)
    for page in pages:
        if (size := len(page.encode())) <= MOST_BYTES:
            return page
    raise UserError(f"the page would have {size:,} bytes even without its tables, above {MOST_BYTES:,}: ask for less")


def _page(results: Results, design_path: str | None, making: Making, pictures: list[Picture] | str, size: _Size) -> str:
    subject = _subject(results)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="generator", content=making.program),
        element("title", f"Training cost: {subject}"),
        element("style", Html(_style())),
    )
    body = element(
        "body",
        element("header", element("h1", subject), element("p", SUBTITLE)),
        element("main", *_sections(results, design_path, making, pictures, size)),
        element("footer", f"Made by {making.program}."),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _sections(
    results: Results, design_path: str | None, making: Making, pictures: list[Picture] | str, size: _Size
) -> list[Html]:
    warnings = element("section", notes_list(list(results.warnings)), class_="warnings") if results.warnings else Html()
    plain = plain_text(results)
    lines = (element("pre", plain),) if plain else ()
    blocks = (block_in_html(block) for block in screen_blocks(results, design_path))
    sections = [warnings, element("section", element("h2", "The answer"), *lines, *blocks)]
    if isinstance(pictures, str):
        sections.append(element("p", pictures, class_="hint"))
    elif pictures:
        sections.append(pictures_in_html(pictures, columns=size.columns))
    if size.tables:
        tables = folded(details(results, design_path))
        sections.append(element("section", element("h2", "Tables"), element("p", FOLDS, class_="hint"), tables))
    document = saved_document(json_document(results)) if size.document else element("p", TOO_LARGE)
    made = (
        element("p", "The command:"),
        element("pre", element("code", making.command)),
        fold(
            "The plan: its flags as a TOML file, to repeat it",
            element("pre", element("code", plan_in_toml(making.plan))),
        ),
        document,
    )
    sections.append(element("section", element("h2", "How this page is made"), *made))
    return sections


def _subject(results: Results) -> str:
    """What the page is about: the models, else the budget, else the published figures."""
    if len(results.analyses) > MOST_NAMES:
        return f"{len(results.analyses)} models"
    if results.analyses:
        return listed([analysis.name for analysis in results.analyses])
    if results.budget is not None:
        return f"A budget of {dollars(results.budget.budget_usd)}"
    return "A claim about a bill" if results.claim is not None else "Published figures, worked out again"


def _style() -> str:
    return files(__package__).joinpath("page.css").read_text(encoding="utf-8")
