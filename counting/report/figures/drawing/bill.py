"""What a run costs and how long it takes, against the utilisation and the price of an hour."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from counting.cost.bill_curves import BillCurves, bill_curves
from counting.cost.run import GpuRun, TrainingRun
from counting.report.figures.drawing.colours import FAINT, Series, crossed, series
from counting.report.figures.drawing.sheet import Sheet, in_units, unit_of
from counting.report.figures.words import joined_titles, model_title
from counting.report.format import dollars, integer, readable, readable_dollars, short_percent
from counting.report.results import Results

MONEY_UNITS = ((12, "$ trillion"), (9, "$ billion"), (6, "$ million"), (3, "$ thousand"), (0, "$"))
HOUR_UNITS = ((9, "billion"), (6, "million"), (3, "thousand"), (0, ""))
_PER_CENT = 0.01
MOST_WITH_COST = 2  # lines whose middle outcome has its cost beside it


def draw_bill(sheet: Sheet, results: Results) -> None:
    """Cost against MFU, days (or GPU-hours) against MFU, cost against price; a line for each model and GPU."""
    curves = bill_curves(results.runs)
    pairs = [(run, on_gpu) for run in results.runs for on_gpu in run.gpus]
    titles = list(dict.fromkeys(model_title(run.model) for run in results.runs))
    looks = _looks(results.runs)
    tokens = results.runs[0].tokens
    rows, columns = (1, 3) if sheet.is_slide else (3, 1)
    by_mfu, by_time, by_price = sheet.panels(
        rows,
        columns,
        title=f"What training costs: {joined_titles(titles)} on {readable(tokens)} tokens",
        subtitle=_shared(pairs),
        legend=sheet.lines([_name(run, on_gpu, titles) for run, on_gpu in pairs], looks) if len(pairs) > 1 else (),
        inches=4.1,
    )
    largest = max(max(each.costs_usd) for each in curves)
    _draw_costs(by_mfu, sheet, curves, pairs, looks, largest)
    _draw_times(by_time, curves, pairs, looks)
    _draw_prices(by_price, curves, pairs, looks)


def _looks(runs: Sequence[TrainingRun]) -> list[Series]:
    """Of each model on each GPU: the model has the colour and the GPU line and marker, where there are several."""
    if len(runs) == 1:
        return [series(number) for number in range(len(runs[0].gpus))]
    if all(len(run.gpus) == 1 for run in runs):
        return [series(number) for number in range(len(runs))]
    return [crossed(model, gpu) for model, run in enumerate(runs) for gpu in range(len(run.gpus))]


def _shared(pairs: Sequence[tuple[TrainingRun, GpuRun]]) -> str:
    """The price and number of the GPUs, with the outcome of the only one."""
    gpus = {on_gpu.gpu: f"{on_gpu.gpu} {dollars(on_gpu.price_usd_per_hour)}" for _, on_gpu in pairs}
    number = pairs[0][1].num_gpus
    words = f"price of an hour: {', '.join(gpus.values())}"
    if number is not None:
        words += f"; {integer(number)} GPUs"
    sources = {outcome.mfu_source for _, on_gpu in pairs for outcome in on_gpu.outcomes}
    return f"{words}; MFU {' or '.join(sorted(sources))}"


def _name(run: TrainingRun, on_gpu: GpuRun, titles: Sequence[str]) -> str:
    return on_gpu.gpu if len(titles) == 1 else f"{model_title(run.model)} on {on_gpu.gpu}"


def _draw_costs(
    axes: Axes,
    sheet: Sheet,
    curves: Sequence[BillCurves],
    pairs: Sequence[tuple[TrainingRun, GpuRun]],
    looks: Sequence[Series],
    largest: float,
) -> None:
    for look, curve, (_, on_gpu) in zip(looks, curves, pairs, strict=True):
        _line(axes, look, curve.mfus, curve.costs_usd)
        _points(axes, look, [each.mfu for each in on_gpu.outcomes], [each.cost_usd for each in on_gpu.outcomes])
        if len(pairs) <= MOST_WITH_COST:
            middle = on_gpu.outcomes[len(on_gpu.outcomes) // 2]
            axes.annotate(
                readable_dollars(middle.cost_usd),
                (middle.mfu, middle.cost_usd),
                xytext=(0.4, 0.4),
                textcoords="offset fontsize",
                size=sheet.measures.small,
                weight="bold",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.3, "alpha": 0.75},
            )
    axes.set_title("Cost against MFU", color=FAINT)
    _mfu_axis(axes)
    _money_axis(axes, largest)


def _draw_times(
    axes: Axes, curves: Sequence[BillCurves], pairs: Sequence[tuple[TrainingRun, GpuRun]], looks: Sequence[Series]
) -> None:
    in_days = all(curve.days is not None for curve in curves)
    for look, curve, (_, on_gpu) in zip(looks, curves, pairs, strict=True):
        _line(axes, look, curve.mfus, (curve.days if in_days else curve.gpu_hours) or ())
        times = [(each.days if in_days else each.gpu_hours) or 0 for each in on_gpu.outcomes]
        _points(axes, look, [each.mfu for each in on_gpu.outcomes], times)
    axes.set_title("Days against MFU" if in_days else "GPU-hours against MFU", color=FAINT)
    _mfu_axis(axes)
    largest = max(max((curve.days if in_days else curve.gpu_hours) or ()) for curve in curves)
    unit, symbol = unit_of(largest, ((0, ""),) if in_days else HOUR_UNITS)
    in_units(axes.yaxis, unit, 6)
    axes.set_ylim(0, largest * 1.05)
    axes.set_ylabel("days" if in_days else f"GPU-hours ({symbol})" if symbol else "GPU-hours")


def _draw_prices(
    axes: Axes, curves: Sequence[BillCurves], pairs: Sequence[tuple[TrainingRun, GpuRun]], looks: Sequence[Series]
) -> None:
    for look, curve, (_, on_gpu) in zip(looks, curves, pairs, strict=True):
        _line(axes, look, curve.prices_usd_per_hour, curve.costs_at_prices_usd)
        middle = on_gpu.outcomes[len(on_gpu.outcomes) // 2]
        _points(axes, look, [on_gpu.price_usd_per_hour], [middle.cost_usd])
    at = sorted({short_percent(curve.priced_at) for curve in curves})
    axes.set_title(f"Cost against price, at {' to '.join((at[0], at[-1]) if len(at) > 1 else at)} MFU", color=FAINT)
    axes.set_xlim(0, curves[0].prices_usd_per_hour[-1])
    in_units(axes.xaxis, 1, 5)
    axes.set_xlabel("price of a GPU-hour ($)")
    _money_axis(axes, max(curve.costs_at_prices_usd[-1] for curve in curves))


def _line(axes: Axes, look: Series, x: Sequence[float], y: Sequence[float]) -> None:
    axes.plot(x, y, color=look.colour, linestyle=look.line)


def _points(axes: Axes, look: Series, x: Sequence[float], y: Sequence[float]) -> None:
    axes.plot(x, y, color=look.colour, marker=look.marker, linestyle="none", clip_on=False, zorder=3)


def _mfu_axis(axes: Axes) -> None:
    axes.set_xlabel("MFU (%)")
    in_units(axes.xaxis, _PER_CENT, 6)
    axes.grid(visible=True)


def _money_axis(axes: Axes, largest: float) -> None:
    unit, symbol = unit_of(largest, MONEY_UNITS)
    in_units(axes.yaxis, unit, 6)
    axes.set_ylim(0, largest * 1.05)
    axes.set_ylabel(f"cost ({symbol})")
    axes.grid(visible=True)
