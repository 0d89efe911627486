"""The figures that a command draws: their kinds and files, checked before anything is measured."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from counting.command.checks import NAME_GPUS
from torch_models.errors import UserError, show_value

if TYPE_CHECKING:
    from counting.report import Fitted, Results
    from counting.report.figures import FigureFormat, FigureSize


class FigureFile(NamedTuple):
    """One figure to draw."""

    kind: str
    path: str
    file_format: "FigureFormat"


def figures_of(options: argparse.Namespace) -> tuple[FigureFile, ...]:
    """What `--figure` names, in its order; raises as `figure_files`."""
    if options.figure is None:
        return ()
    known = kinds_of_job(options)
    asks_for_fit = any(getattr(options, flag) is not None for flag in NAME_GPUS)
    # A file without a kind takes the first, but memory over time only where GPUs are named.
    return figure_files(options.figure, known, next(kind for kind in known if kind != "memory" or asks_for_fit))


def figure_files(texts: Sequence[str], known: Sequence[str], that_fits: str) -> tuple[FigureFile, ...]:
    """The figures of `texts`, each KIND=FILE or FILE, of a job that has the `known` kinds.

    Raises UserError for a kind or suffix that is not known, for a kind that the job does not have, for one that is
    given twice, and without matplotlib.
    """
    from counting.report.figures import check_matplotlib

    for text in texts:
        if texts.count(text) > 1:
            raise _refused(text, "is given twice")
    found = tuple(_figure(text, tuple(known), that_fits) for text in texts)
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


def check_readable(options: argparse.Namespace, gpus: int) -> None:
    """Raises UserError for a figure that would have more models, or lines of models on `gpus` GPUs, than are readable.

    For the models of `--model_config`, before they are measured.
    """
    from counting.report.figures import why_too_many

    for text, figure in zip(options.figure or (), figures_of(options), strict=True):
        if (rule := why_too_many(figure.kind, len(options.model_config or ()), max(gpus, 1))) is not None:
            raise _refused(text, rule)


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


def files_of_figures(texts: Sequence[str] | None, figures: Sequence[FigureFile]) -> dict[str, str | None]:
    """The files, by what names each of them."""
    return {f"--figure {text}": figure.path for text, figure in zip(texts or (), figures, strict=True)}


def drawn_figures(
    figures: Sequence[FigureFile], results: "Results | Fitted", size: "FigureSize | None"
) -> list[tuple[str, bytes]]:
    """The path and content of each figure; None is the size of a slide."""
    if not figures:
        return []
    from counting.report.figures import draw

    return [(path, draw(kind, results, file_format, size or "slide")) for kind, path, file_format in figures]


def _figure(text: str, known: tuple[str, ...], that_fits: str) -> FigureFile:
    from counting.report.figures import FIGURE_FORMATS, why_no_figure

    kind, equals, path = text.partition("=")
    if equals and not kind:
        raise _refused(text, f"must name a kind before =, as {that_fits}={path or 'figure.svg'}, or a file alone")
    if not equals or not kind.isidentifier():
        kind, path = "", text
    if not path:
        raise _refused(text, f"must name a file, as figure.svg or {that_fits}=figure.svg")
    if kind and kind not in known:
        raise _refused(text, f"{kind} {why_no_figure(kind, known)}")
    suffix = Path(path).suffix.lower().removeprefix(".")
    file_format = next((each for each in FIGURE_FORMATS if each == suffix), None)
    if file_format is None:
        names = ", ".join(f".{each}" for each in FIGURE_FORMATS)
        raise _refused(text, f"must end in one of {names}, which says the format")
    return FigureFile(kind or that_fits, path, file_format)


def _refused(text: str, rule: str) -> UserError:
    return UserError(f"--figure = {show_value(text)}: {rule}")
