"""Several models trained on as many tokens: size, FLOPs of a token, GPU-hours or days, and cost, side by side."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

from counting.cost.comparison import ComparedModel, Comparison
from counting.report.figures.drawing.colours import FAINT, series
from counting.report.figures.drawing.sheet import Sheet
from counting.report.figures.words import model_title
from counting.report.format import (
    FLOP_UNITS,
    dollars,
    integer,
    readable,
    readable_dollars,
    short_percent,
    three_digits,
)
from counting.report.results import Results

MOST_NAMED_ABOVE = 3  # bars on a slide with their models' names above them; of more, the names stand beside them


class _Panel(NamedTuple):
    """One quantity: its heading, its value of each model, and how that is written."""

    heading: str
    value: Callable[[ComparedModel], float]
    text: Callable[[ComparedModel], str]
    part: Callable[[ComparedModel], float] | None = None  # drawn solid; the rest is hatched


def draw_comparison(sheet: Sheet, results: Results) -> None:
    """A panel for each quantity, with one bar a model."""
    comparison = results.comparison
    assert comparison is not None
    titles = [model_title(model.model) for model in comparison.models]
    panels = _panels(comparison)
    rows, columns = (2, 2) if sheet.is_slide else (len(panels), 1)
    who = " against ".join(titles) if len(titles) == 2 else f"{len(titles)} models"
    all_axes = sheet.panels(
        rows,
        columns,
        title=f"{who}, trained on {readable(comparison.tokens)} tokens",
        subtitle=_shared(comparison),
        inches=len(panels) * (0.22 + 0.24 * len(titles)),
    )
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw_panel(axes, sheet, panel, comparison.models, titles)


def _shared(comparison: Comparison) -> str:
    gpus = comparison.gpu if comparison.num_gpus is None else f"{integer(comparison.num_gpus)} {comparison.gpu}"
    return (
        f"on {gpus} at {short_percent(comparison.mfu)} MFU and {dollars(comparison.price_usd_per_hour)} a GPU-hour, "
        f"{integer(comparison.models[0].sequence_length)} tokens a sequence"
    )


def _panels(comparison: Comparison) -> tuple[_Panel, ...]:
    def size(model: ComparedModel) -> str:
        total = readable(model.total_parameters)
        routed = model.active_parameters != model.total_parameters
        return f"{total}, {readable(model.active_parameters)} active" if routed else total

    def bill(model: ComparedModel) -> str:
        times = model.cost_over_cheapest
        text = readable_dollars(model.outcome.cost_usd)
        return f"{text}  (× {three_digits(times)})" if times > 1 else text

    hours = _Panel("GPU-hours", lambda m: m.outcome.gpu_hours, lambda m: readable(m.outcome.gpu_hours))
    if comparison.num_gpus is not None:
        hours = _Panel(
            f"Days on {integer(comparison.num_gpus)} {comparison.gpu}",
            lambda m: m.outcome.days or 0,
            lambda m: f"{three_digits(m.outcome.days or 0)} days",
        )
    return (
        _Panel(
            "Parameters (solid: active for a token)", lambda m: m.total_parameters, size, lambda m: m.active_parameters
        ),
        _Panel(
            "FLOPs to train one token",
            lambda m: m.training_flops_per_token,
            lambda m: readable(m.training_flops_per_token, FLOP_UNITS),
        ),
        hours,
        _Panel("Cost in US dollars (× the cheapest)", lambda m: m.outcome.cost_usd, bill),
    )


def _draw_panel(
    axes: Axes, sheet: Sheet, panel: _Panel, models: Sequence[ComparedModel], titles: Sequence[str]
) -> None:
    beside = sheet.is_slide and len(models) > MOST_NAMED_ABOVE
    size = sheet.measures.small if beside else sheet.measures.text
    largest = max(panel.value(model) for model in models)
    axes.set_xlim(0, largest * (1.42 if sheet.is_slide else 1.6))
    axes.set_ylim(len(models) - 0.5, -0.5 if beside else -0.75)
    for row, model in enumerate(models):
        colour = series(row).colour
        value = panel.value(model)
        part = value if panel.part is None else panel.part(model)
        height = 0.7 if beside else 0.5
        axes.barh(row, part, height=height, color=colour, edgecolor=colour)
        if part < value:
            axes.barh(
                row,
                value - part,
                left=part,
                height=height,
                color="white",
                hatch="/" if sheet.is_slide else "////",
                edgecolor=colour,
                hatchcolor=colour,
            )
        if not beside:
            axes.text(0, row - 0.3, titles[row], va="bottom", size=sheet.measures.small)
        axes.text(value + largest / 60, row, panel.text(model), va="center", weight="bold", size=size)
    axes.set_title(panel.heading, color=FAINT)
    axes.set_xticks([])
    axes.set_yticks(range(len(models)) if beside else [], titles if beside else [])
    axes.tick_params(axis="y", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
