"""A figure of one kind as bytes."""

import re
from typing import TYPE_CHECKING

from counting.report.figures.captions import caption_of
from counting.report.figures.kinds import (
    FIGURE_KINDS,
    FIT_KIND,
    FigureFormat,
    FigureSize,
    kinds_of,
    why_too_much,
)
from counting.report.results import Fitted, Results
from torch_models.errors import UserError

if TYPE_CHECKING:
    from counting.report.figures.drawing import Sheet

_IDS = re.compile(r'(\bid="|url\(#|href="#)')


def draw(kind: str, results: Results | Fitted, file_format: FigureFormat, size: FigureSize = "slide") -> bytes:
    """The figure as a file: on white, with its caption. The same results give the same bytes.

    `size` is that of a slide, 1600 x 900 pixels, or of a column of a paper, 3.3 inches wide. Raises `UserError` for a
    kind that these results do not have, for more models or lines than are readable, and
    without a matplotlib that works.
    """
    sheet = _drawn(kind, results, size, with_caption=True)
    return sheet.save(file_format, transparent=False)


def embedded_svg(kind: str, results: Results | Fitted, size: FigureSize = "slide") -> str:
    """The figure as an `<svg>` element to stand in a page: transparent, without its caption; its ids begin with `kind`.

    Raises as `draw`.
    """
    text = _drawn(kind, results, size, with_caption=False).save("svg", transparent=True).decode()
    return _IDS.sub(rf"\g<1>{kind}-", text[text.index("<svg") :])


def caption(kind: str, results: Results | Fitted) -> str:
    """The conventions of a figure in words; raises `UserError` for a kind that these results do not have."""
    check_kind(kind, results)
    return caption_of(kind, results)


def check_kind(kind: str, results: Results | Fitted) -> None:
    """Raises `UserError` for a kind that these results do not have."""
    if kind not in (known := kinds_of(results)):
        raise UserError(f"figure {kind!r}: {why_no_figure(kind, known)}")


def why_no_figure(kind: str, known: tuple[str, ...]) -> str:
    """The rule for an error about a `kind` of which these results, which have the `known` ones, are none."""
    has = f"choose from {', '.join(known)}" if known else "this job has none"
    return f"is not known: {has}" if kind not in (*FIGURE_KINDS, FIT_KIND) else f"is of another job: {has}"


def check_matplotlib() -> None:
    """Raises `UserError` where matplotlib is not installed, or is there and cannot be imported."""
    extra = 'of the extra figures: pip install "model-training-cost-analysis[figures]"'
    try:
        import matplotlib
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name == "matplotlib":
            raise UserError(f"a figure needs matplotlib, {extra}") from None
        raise UserError(_broken(error, extra)) from None
    except ImportError as error:
        raise UserError(_broken(error, extra)) from None


def _broken(error: ImportError, extra: str) -> str:
    reason = " ".join(str(error).split()).rstrip(".") or "no reason given"
    return f"matplotlib cannot be imported ({reason}): install it again, {extra}"


def _drawn(kind: str, results: Results | Fitted, size: FigureSize, *, with_caption: bool) -> "Sheet":
    check_kind(kind, results)
    if (rule := why_too_much(kind, results)) is not None:
        raise UserError(f"figure {kind!r}: {rule}")
    check_matplotlib()
    from counting.report.figures.drawing import Sheet, draw_on

    sheet = Sheet(size, caption_of(kind, results) if with_caption else "")
    with sheet.style():
        draw_on(sheet, kind, results)
    return sheet
