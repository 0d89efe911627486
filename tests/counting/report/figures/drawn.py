"""Figures as matplotlib has them before they are files: what tests read of them."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from counting.report.figures import FigureSize, caption
from counting.report.figures.drawing import Sheet, draw_on
from counting.report.results import Fitted, Results


def sheet_of(kind: str, results: Results | Fitted, size: FigureSize = "slide") -> Sheet:
    """The figure on its sheet, with its caption."""
    sheet = Sheet(size, caption(kind, results))
    with sheet.style():
        draw_on(sheet, kind, results)
    return sheet


def axes_of(kind: str, results: Results | Fitted, size: FigureSize = "slide") -> list[Axes]:
    return sheet_of(kind, results, size).figure.axes


def bars(axes: Axes) -> list[Rectangle]:
    """All bars, in the order in which they were drawn."""
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def line(axes: Axes, gid: str) -> tuple[list[float], list[float]]:
    """The data of the line with this name."""
    (found,) = (each for each in axes.lines if each.get_gid() == gid)
    return data_of(found)


def data_of(found: Line2D) -> tuple[list[float], list[float]]:
    x, y = found.get_data(orig=True)
    return list(x), list(y)


def texts(sheet: Sheet) -> Sequence[str]:
    """Every text that is not empty."""
    return [text.get_text() for text in sheet.figure.findobj(Text) if isinstance(text, Text) and text.get_text()]
