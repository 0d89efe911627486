"""Parameters, and the training FLOPs of a token, by component: one stacked bar a model."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

from counting.cost.conventions import training_flops_by_component, training_flops_per_token
from counting.report.figures.drawing.colours import COMPONENT_LOOKS, INK, Look
from counting.report.figures.drawing.sheet import Sheet, Units, in_units, unit_of
from counting.report.figures.words import joined_titles, model_title
from counting.report.format import COUNT_UNITS, FLOP_UNITS, readable
from counting.report.results import Results


class _Bar(NamedTuple):
    """One model: its parts by component, and what stands at the end of its bar."""

    title: str
    parts: Mapping[str, float]
    at_end: str


def draw_parameters(sheet: Sheet, results: Results) -> None:
    """The parameters of each model by component."""
    bars = []
    for analysis in results.analyses:
        of = analysis.parameters
        active = "" if of.active == of.total else f"\n{readable(of.active)} active"
        bars.append(_Bar(model_title(analysis.name), of.by_component, readable(of.total) + active))
    title = f"Parameters by component: {joined_titles([bar.title for bar in bars])}"
    _stacked_bars(sheet, bars, title, "parameters", COUNT_UNITS)


def draw_flops(sheet: Sheet, results: Results) -> None:
    """The training FLOPs of a token of each model by component."""
    bars = []
    for analysis in results.analyses:
        parts = {name: float(flops) for name, flops in training_flops_by_component(analysis).items()}
        total = readable(float(training_flops_per_token(analysis)), FLOP_UNITS)
        bars.append(_Bar(model_title(analysis.name), parts, total))
    title = f"FLOPs to train one token: {joined_titles([bar.title for bar in bars])}"
    _stacked_bars(sheet, bars, title, "training FLOPs per token", FLOP_UNITS)


def _stacked_bars(sheet: Sheet, bars: Sequence[_Bar], title: str, quantity: str, units: Units) -> None:
    (axes,) = sheet.panels(1, 1, title=title, legend=sheet.areas(_looks(bars).values()), inches=0.5 + 0.42 * len(bars))
    largest = max(sum(bar.parts.values()) for bar in bars)
    axes.set_xlim(0, largest * (1.17 if sheet.is_slide else 1.35))
    for row, bar in enumerate(bars):
        _stack(axes, sheet, row, bar, units)
    around = 0.5 if len(bars) > 1 else 0.8
    axes.set_ylim(len(bars) - 1 + around, -around)
    axes.set_yticks(range(len(bars)), [bar.title for bar in bars], size=sheet.measures.text)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    unit, symbol = unit_of(largest, units)
    in_units(axes.xaxis, unit, 8 if sheet.is_slide else 5)
    axes.set_xlabel(f"{quantity} ({symbol})")


def _looks(bars: Sequence[_Bar]) -> dict[str, Look]:
    """Of the components that some bar has, in the order of the table."""
    return {name: look for name, look in COMPONENT_LOOKS.items() if any(bar.parts.get(name) for bar in bars)}


def _stack(axes: Axes, sheet: Sheet, row: int, bar: _Bar, units: Units) -> None:
    """The parts of a bar one after the other; a part that is long enough has its number in it."""
    left, room = 0.0, axes.get_xlim()[1]
    for name, look in _looks([bar]).items():
        value = bar.parts[name]
        axes.barh(row, value, left=left, height=0.62, color=look.colour, hatch=sheet.hatch(look), edgecolor=INK)
        text = readable(value, units)
        if sheet.fits_in(text, value / room * sheet.measures.width * 0.75):
            box = {"boxstyle": "round,pad=0.15", "facecolor": look.colour, "edgecolor": "none"} if look.hatch else None
            axes.text(
                left + value / 2,
                row,
                text,
                ha="center",
                va="center",
                size=sheet.measures.small,
                color=INK if look.light else "white",
                bbox=box,
            )
        left += value
    axes.text(left + room / 100, row, bar.at_end, va="center", size=sheet.measures.text, weight="bold")
