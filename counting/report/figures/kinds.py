"""The kinds of figures, and which of them some results have."""

from collections.abc import Callable, Mapping
from typing import Literal

from counting.report.results import Fitted, Results

FigureFormat = Literal["svg", "png", "pdf"]
FigureSize = Literal["slide", "column"]

FIGURE_FORMATS: tuple[FigureFormat, ...] = ("svg", "png", "pdf")
FIGURE_SIZES: tuple[FigureSize, ...] = ("slide", "column")

# Kind -> whether these results have it. The kind that says most of a job stands first.
FIGURE_KINDS: Mapping[str, Callable[[Results], bool]] = {
    "comparison": lambda results: results.comparison is not None,
    "law": lambda results: results.budget is not None,
    "bill": lambda results: bool(results.runs),
    "ranks": lambda results: any(analysis.rank_classes for analysis in results.analyses),
    "memory": lambda results: any(analysis.timeline is not None for analysis in results.analyses),
    "parameters": lambda results: bool(results.analyses),
    "flops": lambda results: bool(results.analyses),
}
FIT_KIND = "fit"  # the only one of a fitted law


def kinds_of(results: Results | Fitted) -> tuple[str, ...]:
    """The kinds that these results have, the one that says most of the job first."""
    if isinstance(results, Fitted):
        return (FIT_KIND,)
    return tuple(kind for kind, has in FIGURE_KINDS.items() if has(results))
