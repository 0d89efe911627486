"""The memory of each class of equal ranks at its worst moment, by what is in it, for one layout or several."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

from counting.analysis import Analysis
from counting.ranks.result import RankAnalysis, worst_by_place
from counting.report.figures.drawing.capacity import FARTHEST_OF_BARS, draw_capacities, memory_axis
from counting.report.figures.drawing.colours import FAINT, INK, MEMORY_LOOKS, RESERVED_LOOK
from counting.report.figures.drawing.sheet import Sheet
from counting.report.figures.words import byte_unit, joined_titles, layout_title, model_title, needed_of_gpus
from counting.report.format import integer, numbered, readable
from counting.report.results import Results
from counting.step.phase import Phase

MOST_CLASSES = 8  # of a layout; of more, the worst of each rank of the pipeline
MOST_LABELLED = 16  # bars with a name each


class _Bar(NamedTuple):
    """One class of equal ranks at its place on the axis."""

    place: float
    ranks: RankAnalysis
    worst: Phase
    label: str


def draw_ranks(sheet: Sheet, results: Results) -> None:
    """A bar for each class; the bars of a layout stand together."""
    spread = [analysis for analysis in results.analyses if analysis.rank_classes]
    groups, at = list[tuple[Analysis, list[_Bar]]](), 0.0
    for analysis in spread:
        bars = _bars(analysis, at)
        groups.append((analysis, bars))
        at = bars[-1].place + 2
    all_bars = [bar for _, bars in groups for bar in bars]
    fits = {fit.gpu: fit for analysis in spread for fit in analysis.fits or ()}
    peak = max(map(_top, all_bars))
    looks = [look for part, look in MEMORY_LOOKS.items() if any(getattr(bar.worst, part) for bar in all_bars)]
    looks += [RESERVED_LOOK] if any(_top(bar) > bar.worst.peak_bytes for bar in all_bars) else []
    (axes,) = sheet.panels(
        1,
        1,
        title=f"Memory of a rank: {_who(spread)}",
        subtitle=needed_of_gpus(spread[0].fits or ()) if len(spread) == 1 else "",
        legend=sheet.areas(looks),
        inches=2,
    )
    unit = byte_unit(peak, compared=bool(fits))
    axes.set_xlim(-0.9, all_bars[-1].place + 0.9)
    memory_axis(axes, sheet, peak, tuple(fits.values()), unit, FARTHEST_OF_BARS)
    draw_capacities(axes, sheet, peak, tuple(fits.values()), unit, FARTHEST_OF_BARS)
    for bar in all_bars:
        _draw_bar(axes, sheet, bar)
        if len(all_bars) <= (MOST_LABELLED if sheet.is_slide else MOST_CLASSES):
            text = readable(bar.worst.peak_bytes / unit.bytes, ())
            reserved = _top(bar) > bar.worst.peak_bytes
            axes.annotate(
                f"{readable(_top(bar) / unit.bytes, ())} reserved\n{text}" if reserved else text,
                (bar.place, _top(bar)),
                xytext=(0, 0.2),
                textcoords="offset fontsize",
                ha="center",
                va="bottom",
                weight="bold",
                size=sheet.measures.small if reserved or len(all_bars) > MOST_CLASSES else sheet.measures.text,
            )
    _name_bars(axes, sheet, groups)


def _top(bar: _Bar) -> int:
    """The bytes of the worst moment, or what is reserved at most if that is more."""
    return max(bar.worst.peak_bytes, *(bar.ranks.memory.reserved_bytes or (0,)))


def _who(spread: Sequence[Analysis]) -> str:
    """What is spread, and how, if that is one thing; else how many."""
    models = list(dict.fromkeys(model_title(analysis.name) for analysis in spread))
    layouts = list(dict.fromkeys(layout_title(analysis.layout) for analysis in spread))
    return f"{joined_titles(models)}, {layouts[0] if len(layouts) == 1 else f'{len(layouts)} layouts'}"


def _bars(analysis: Analysis, first: float) -> list[_Bar]:
    """The bars of a layout, side by side from the place `first`."""
    classes = analysis.rank_classes or ()
    shown = classes if len(classes) <= MOST_CLASSES else worst_by_place(classes)
    found = []
    for number, ranks in enumerate(shown):
        (worst,) = (phase for phase in ranks.memory.phases if phase.name == ranks.memory.peak_phase)
        found.append(_Bar(first + number, ranks, worst, _label(analysis, ranks, alone=len(shown) == 1)))
    return found


def _label(analysis: Analysis, ranks: RankAnalysis, *, alone: bool) -> str:
    layout = analysis.layout
    assert layout is not None
    if alone:
        return f"all {integer(layout.ranks)} ranks"
    if layout.pp > 1:
        return f"pp {ranks.stage}"
    return f"{numbered(ranks.count, 'rank')},\nfrom {integer(ranks.first_rank)}"


def _draw_bar(axes: Axes, sheet: Sheet, bar: _Bar) -> None:
    """The parts of the worst moment one upon the other, and above them what is reserved, empty and dotted."""
    bottom = 0
    for part, look in MEMORY_LOOKS.items():
        size = getattr(bar.worst, part)
        if size:
            axes.bar(bar.place, size, 0.7, bottom=bottom, facecolor=look.colour, hatch=sheet.hatch(look), edgecolor=INK)
        bottom += size
    reserved = max(bar.ranks.memory.reserved_bytes or (0,))
    if reserved > bottom:
        axes.bar(
            bar.place, reserved - bottom, 0.7, bottom=bottom, facecolor="none", edgecolor=INK, linestyle=(0, (1, 1))
        )


def _name_bars(axes: Axes, sheet: Sheet, groups: Sequence[tuple[Analysis, list[_Bar]]]) -> None:
    """The ranks of each bar, and under the bars of a layout what distinguishes it."""
    every = [bar for _, bars in groups for bar in bars]
    axes.tick_params(axis="x", length=0)
    if len(every) <= (MOST_LABELLED if sheet.is_slide else MOST_CLASSES):
        axes.set_xticks([bar.place for bar in every], [bar.label for bar in every])
    else:
        axes.set_xticks([])
    if len(groups) < 2:
        return
    lines = 1 + max(bar.label.count("\n") for bar in every)
    several_models = len({analysis.name for analysis, _ in groups}) > 1
    for analysis, bars in groups:
        name = model_title(analysis.name) if several_models else layout_title(analysis.layout)
        axes.annotate(
            name,
            ((bars[0].place + bars[-1].place) / 2, 0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -1.5 * lines - 0.3),
            textcoords="offset fontsize",
            ha="center",
            va="top",
            weight="bold",
            size=sheet.measures.small,
            color=FAINT,
        )
