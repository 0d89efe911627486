"""The drawings of all kinds of figures, on a `Sheet`, with matplotlib."""

from collections.abc import Callable, Mapping

from counting.report.figures.drawing.bill import draw_bill
from counting.report.figures.drawing.comparison import draw_comparison
from counting.report.figures.drawing.components import draw_flops, draw_parameters
from counting.report.figures.drawing.fit import draw_fit
from counting.report.figures.drawing.law import draw_law
from counting.report.figures.drawing.memory import draw_memory
from counting.report.figures.drawing.ranks import draw_ranks
from counting.report.figures.drawing.sheet import Sheet
from counting.report.results import Fitted, Results

__all__ = ["Sheet", "draw_on"]

_DRAWINGS: Mapping[str, Callable[[Sheet, Results], None]] = {
    "comparison": draw_comparison,
    "law": draw_law,
    "bill": draw_bill,
    "ranks": draw_ranks,
    "memory": draw_memory,
    "parameters": draw_parameters,
    "flops": draw_flops,
}


def draw_on(sheet: Sheet, kind: str, results: Results | Fitted) -> None:
    """Draw the figure of this kind, which these results have."""
    if isinstance(results, Fitted):
        draw_fit(sheet, results)
    else:
        _DRAWINGS[kind](sheet, results)
