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

# What is still readable on a slide and on a column.
MOST_MODELS, MOST_PANELS = 8, 4
MOST_GPUS_OF_BILL, MOST_LINES = 8, 16


def why_too_many(kind: str, models: int, gpus: int = 1) -> str | None:
    """The rule for an error, where so many models, each on so many GPUs, are too many for one figure; else None."""
    most = MOST_PANELS if kind == "memory" else MOST_MODELS
    if models > most:
        return f"{kind} shows at most {most} models in one figure, not {models}: name fewer"
    if kind == "bill" and (gpus > MOST_GPUS_OF_BILL or models * gpus > MOST_LINES):
        return (
            f"bill shows at most {MOST_GPUS_OF_BILL} GPUs and {MOST_LINES} lines, one for each model and GPU, in one "
            f"figure, not {gpus} GPUs and {models * gpus} lines: name fewer"
        )
    return None


def why_too_much(kind: str, results: Results | Fitted) -> str | None:
    """The rule for an error, where these results are too many for one figure of this kind; else None."""
    if isinstance(results, Fitted):
        return None
    shown = [each for each in results.analyses if kind != "memory" or each.timeline is not None]
    gpus = max((len(run.gpus) for run in results.runs), default=1)
    return why_too_many(kind, len({each.name for each in shown} if kind == "ranks" else shown), gpus)


def kinds_of(results: Results | Fitted) -> tuple[str, ...]:
    """The kinds that these results have, the one that says most of the job first."""
    if isinstance(results, Fitted):
        return (FIT_KIND,)
    return tuple(kind for kind, has in FIGURE_KINDS.items() if has(results))
