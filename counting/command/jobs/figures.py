"""The figures that a command draws: their kinds and files, checked before anything is measured."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from counting.command.checks import NAME_GPUS
from torch_models.errors import ArgumentError

if TYPE_CHECKING:
    from counting.report import Results
    from counting.report.figures import FigureFormat


class FigureFile(NamedTuple):
    """One figure to draw."""

    kind: str
    path: str
    file_format: "FigureFormat"


def figures_of(options: argparse.Namespace) -> tuple[FigureFile, ...]:
    """What `--figure` names, in its order; raises UserError for a kind or suffix that is not known.

    And for a kind that this job does not have, for one that is given twice, and without matplotlib.
    """
    if options.figure is None:
        return ()
    from counting.report.figures import check_matplotlib

    for text in options.figure:
        if options.figure.count(text) > 1:
            raise ArgumentError("figure", text, "is given twice")
    found = tuple(_figure(text, options) for text in options.figure)
    check_matplotlib()
    return found


def kinds_of_job(options: argparse.Namespace) -> tuple[str, ...]:
    """The kinds of figures that the results of these flags will have, best first."""
    from counting.report.figures import FIGURE_KINDS

    models, layout = bool(options.model_config), options.layout is not None
    has = {
        "comparison": options.compare,
        "law": options.training_budget is not None,
        "bill": options.tokens is not None and not options.compare,
        "ranks": layout,
        "memory": models and not layout,
        "parameters": models,
        "flops": models,
    }
    return tuple(kind for kind in FIGURE_KINDS if has.get(kind))


def draws_memory(options: argparse.Namespace) -> bool:
    """Whether a figure needs the memory of a step over time."""
    return any(figure.kind == "memory" for figure in figures_of(options))


def shows_memory(options: argparse.Namespace) -> bool:
    """Whether a figure or the page shows the memory of a step over time.

    The page does, where the question is whether the step of one model fits.
    """
    asks_for_fit = any(getattr(options, flag) is not None for flag in NAME_GPUS) and options.tokens is None
    in_page = options.html is not None and asks_for_fit and len(options.model_config) == 1
    return (in_page and "memory" in kinds_of_job(options)) or draws_memory(options)


def files_of_figures(options: argparse.Namespace) -> dict[str, str | None]:
    """The files, by what names each of them."""
    return {
        f"--figure {text}": figure.path for text, figure in zip(options.figure or (), figures_of(options), strict=True)
    }


def drawn_figures(options: argparse.Namespace, results: "Results") -> Iterator[tuple[str, bytes]]:
    """The path and content of each figure."""
    for kind, path, file_format in figures_of(options):
        from counting.report.figures import draw

        yield path, draw(kind, results, file_format, options.figure_size or "slide")


def _figure(text: str, options: argparse.Namespace) -> FigureFile:
    from counting.report.figures import FIGURE_FORMATS, why_no_figure

    kind, equals, path = text.partition("=")
    if not equals or not kind.isidentifier():
        kind, path = "", text
    if not path:
        raise ArgumentError("figure", text, "must name a file, as figure.svg or memory=figure.svg")
    known = kinds_of_job(options)
    if kind and kind not in known:
        raise ArgumentError("figure", text, f"{kind} {why_no_figure(kind, known)}")
    suffix = Path(path).suffix.lower().removeprefix(".")
    file_format = next((each for each in FIGURE_FORMATS if each == suffix), None)
    if file_format is None:
        names = ", ".join(f".{each}" for each in FIGURE_FORMATS)
        raise ArgumentError("figure", text, f"must end in one of {names}, which says the format")
    return FigureFile(kind or _that_fits(known, options), path, file_format)


def _that_fits(known: Sequence[str], options: argparse.Namespace) -> str:
    """The kind that a file without one takes: the first, but memory over time only where GPUs are named."""
    asks_for_fit = any(getattr(options, flag) is not None for flag in NAME_GPUS)
    return next(kind for kind in known if kind != "memory" or asks_for_fit)
