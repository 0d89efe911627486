"""The memory of a step over time, by what is in it, with its peak and the memory of the GPUs."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.markers import CARETDOWN

from counting.analysis import Analysis
from counting.report.figures.drawing.capacity import draw_capacities, memory_axis
from counting.report.figures.drawing.colours import FAINT, INK, MEMORY_LOOKS
from counting.report.figures.drawing.sheet import Sheet
from counting.report.figures.words import ByteUnit, byte_unit, joined_titles, model_title, needed_of_gpus
from counting.report.results import Results
from counting.step.memory import CLIPPING
from counting.step.timeline import StepTimeline

BESIDE = 0.05  # width of the bar of what follows backward, as a share of the passes'


def draw_memory(sheet: Sheet, results: Results) -> None:
    """One panel for each model whose step has a timeline."""
    shown = [analysis for analysis in results.analyses if analysis.timeline is not None]
    columns = 2 if sheet.is_slide and len(shown) > 2 else 1
    rows = -(-len(shown) // columns)
    titles = [model_title(analysis.name) for analysis in shown]
    in_some = [part for part in MEMORY_LOOKS if any(_has(analysis.timeline, part) for analysis in shown)]
    all_axes = sheet.panels(
        rows,
        columns,
        title=f"Memory of a training step: {joined_titles(titles)}",
        subtitle=needed_of_gpus(shown[0].fits or ()) if len(shown) == 1 else "",
        legend=sheet.areas(MEMORY_LOOKS[part] for part in in_some),
        inches=1.9 * rows,
    )
    for axes, analysis, title in zip(all_axes, shown, titles, strict=False):
        assert analysis.timeline is not None
        if len(shown) > 1:
            axes.set_title(title, color=FAINT)
        _draw_step(axes, sheet, analysis, analysis.timeline)
    for axes in all_axes[len(shown) :]:
        axes.remove()


def _has(timeline: StepTimeline | None, part: str) -> bool:
    assert timeline is not None
    return any(timeline.parts[part]) or any(getattr(phase, part) for phase in timeline.after_backward)


def _draw_step(axes: Axes, sheet: Sheet, analysis: Analysis, timeline: StepTimeline) -> None:
    fits = analysis.fits or ()
    unit = byte_unit(timeline.peak_bytes, compared=bool(fits))
    width = timeline.changes[-1]
    places = [width * (1 + BESIDE * (0.9 + 1.6 * number)) for number in range(len(timeline.after_backward))]
    _draw_passes(axes, sheet, timeline)
    _draw_after(axes, sheet, timeline, places, width * BESIDE)
    axes.set_xlim(0, width * (1 + BESIDE * (0.4 + 1.6 * len(places))))
    memory_axis(axes, sheet, timeline.peak_bytes, fits, unit)
    draw_capacities(axes, sheet, timeline.peak_bytes, fits, unit)
    _name_phases(axes, sheet, timeline, places)
    _mark_peak(axes, timeline, places, unit)
    axes.set_xlabel(f"{width:,} allocations and releases, in order", color=FAINT, size=sheet.measures.small)


def _draw_passes(axes: Axes, sheet: Sheet, timeline: StepTimeline) -> None:
    """One area for each part, from 0 to the top of the stack up to it, the highest behind the others."""
    tops, below = dict[str, tuple[int, ...]](), (0,) * len(timeline.changes)
    for part, sizes in timeline.parts.items():
        if _has(timeline, part):
            below = tops[part] = tuple(map(sum, zip(below, sizes, strict=True)))
    first, last = timeline.changes[0], timeline.changes[-1]
    for part, top in reversed(tops.items()):
        look = MEMORY_LOOKS[part]
        axes.fill(
            (first, *timeline.changes, last),
            (0, *top, 0),
            facecolor=look.colour,
            hatch=sheet.hatch(look),
            edgecolor=INK,
            linewidth=0,
            gid=f"area of {part}",
        )
    axes.plot(timeline.changes, timeline.totals, color=INK, linewidth=sheet.measures.line / 4, solid_joinstyle="bevel")


def _draw_after(axes: Axes, sheet: Sheet, timeline: StepTimeline, places: Sequence[float], width: float) -> None:
    """A bar for the worst moment of clipping, and of the update."""
    for place, phase in zip(places, timeline.after_backward, strict=True):
        bottom = 0
        for part, look in MEMORY_LOOKS.items():
            if size := getattr(phase, part):
                axes.bar(
                    place, size, width, bottom=bottom, facecolor=look.colour, hatch=sheet.hatch(look), edgecolor=INK
                )
            bottom += size


def _name_phases(axes: Axes, sheet: Sheet, timeline: StepTimeline, places: Sequence[float]) -> None:
    """The name of each phase under it; those of short phases stand a line lower."""
    several, below = timeline.micro_batches > 1, "\n" if sheet.is_slide else "\n\n"
    names = dict[float, str]()
    for span in timeline.spans:
        name = span.name
        if name not in ("forward", "backward"):
            name = f"{below if several else below[0]}{name.replace(' and', ',')}"
        elif several:
            name += (
                f" {span.micro_batch + 1} of {timeline.micro_batches}"
                if sheet.is_slide
                else f"\n{span.micro_batch + 1}"
            )
        names[(span.first + span.last) / 2] = name
        axes.axvline(span.last, color=FAINT, linewidth=sheet.measures.line / 6, linestyle=(0, (2, 2)))
    for place, phase in zip(places, timeline.after_backward, strict=True):
        names[place] = "\nclip" if phase.name == CLIPPING else "update"
    axes.set_xticks(list(names), list(names.values()))
    axes.tick_params(axis="x", length=0)


def _mark_peak(axes: Axes, timeline: StepTimeline, places: Sequence[float], unit: ByteUnit) -> None:
    totals: dict[float, int] = dict(zip(timeline.changes, timeline.totals, strict=True))
    totals |= {place: phase.peak_bytes for place, phase in zip(places, timeline.after_backward, strict=True)}
    peak = timeline.peak_bytes
    (at, *_) = (place for place, total in totals.items() if total == peak)
    share = at / axes.get_xlim()[1]
    side = "left" if share < 0.2 else "right" if share > 0.8 else "center"
    axes.plot([at], [peak], marker=CARETDOWN, color=INK, linestyle="none", gid="peak")
    axes.annotate(
        f"peak {unit.text(peak)}",
        (at, peak),
        xytext=(0, 0.7),
        textcoords="offset fontsize",
        ha=side,
        va="bottom",
        weight="bold",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
    )
