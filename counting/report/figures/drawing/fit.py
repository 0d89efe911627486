"""Training runs with the law that was fitted to them, and what is left between the two."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from counting.cost.fit.result import FittedLaw, FittedRun
from counting.cost.fit_curves import FitCurves, fit_curves
from counting.report.figures.drawing.colours import FAINT, INK, series
from counting.report.figures.drawing.sheet import Sheet, in_units
from counting.report.format import COUNT_UNITS, readable, three_digits
from counting.report.results import Fitted

_PER_CENT = 0.01
SMALLER = 0.7  # markers of runs, relative to those of a few points


def draw_fit(sheet: Sheet, results: Fitted) -> None:
    """The losses of the runs with the law's curves, and the residuals; by budget, where runs share budgets."""
    fitted = results.fitted
    curves = fit_curves(fitted)
    rows, columns, ratios = (1, 2, {"width_ratios": (3, 2)}) if sheet.is_slide else (2, 1, {"height_ratios": (3, 2)})
    names = [f"{each.budget.training_flops:.3g} FLOP" for each in curves.budgets]
    legend = sheet.lines(names, [series(number) for number in range(len(names))])
    losses, residuals = sheet.panels(
        rows,
        columns,
        title=f"Scaling law {fitted.law.name}, fitted to {len(fitted.runs):,} runs",
        subtitle=_constants(fitted),
        legend=legend,
        inches=3.6,
        **ratios,
    )
    groups = _groups(fitted, curves)
    if curves.budgets:
        _draw_budgets(losses, sheet, curves, groups)
    else:
        _draw_frontier(losses, sheet, fitted, curves)
    _draw_residuals(residuals, sheet, groups)


def _constants(fitted: FittedLaw) -> str:
    law = fitted.law
    named = {
        "E": law.irreducible_loss,
        "A": law.parameter_coefficient,
        "alpha": law.parameter_exponent,
        "B": law.token_coefficient,
        "beta": law.token_exponent,
    }
    return ", ".join(f"{name} = {three_digits(constant.value)}" for name, constant in named.items())


def _groups(fitted: FittedLaw, curves: FitCurves) -> list[list[FittedRun]]:
    """The runs of each budget, then those of none."""
    by_line = {run.line: run for run in fitted.runs}
    groups = [[by_line.pop(line) for line in each.budget.lines if line in by_line] for each in curves.budgets]
    return [*groups, list(by_line.values())]


def _draw_budgets(axes: Axes, sheet: Sheet, curves: FitCurves, groups: Sequence[Sequence[FittedRun]]) -> None:
    for number, each in enumerate(curves.budgets):
        look = series(number)
        axes.plot(each.curve.parameters, each.curve.loss, color=look.colour, linestyle=look.line, gid=f"curve {number}")
    for number, runs in enumerate(groups):
        _points(axes, sheet, number, [run.parameters for run in runs], [run.loss for run in runs])
    axes.set_title("Loss of the runs, and the law at their budgets", color=FAINT)
    _sizes(axes)
    axes.set_ylabel("loss (nats per token)")
    axes.grid(visible=True)


def _draw_frontier(axes: Axes, sheet: Sheet, fitted: FittedLaw, curves: FitCurves) -> None:
    look = series(0)
    axes.plot(curves.training_flops, curves.lowest_loss, color=look.colour, gid="frontier")
    _points(axes, sheet, 0, [run.training_flops for run in fitted.runs], [run.loss for run in fitted.runs])
    axes.set_xscale("log")
    axes.set_title("Loss of the runs; line: the best by the law", color=FAINT)
    axes.set_xlabel("training FLOPs C (FLOP)")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(visible=True)


def _draw_residuals(axes: Axes, sheet: Sheet, groups: Sequence[Sequence[FittedRun]]) -> None:
    for number, runs in enumerate(groups):
        _points(axes, sheet, number, [run.parameters for run in runs], [run.residual for run in runs])
    axes.axhline(0, color=INK, linewidth=sheet.measures.line / 3)
    axes.set_title("Residuals", color=FAINT)
    _sizes(axes)
    in_units(axes.yaxis, _PER_CENT, 6)
    axes.set_ylabel("log loss - log predicted loss (%)")
    axes.grid(visible=True)


def _points(axes: Axes, sheet: Sheet, number: int, x: Sequence[float], y: Sequence[float]) -> None:
    look = series(number)
    axes.plot(
        x,
        y,
        color=look.colour,
        marker=look.marker,
        markersize=sheet.measures.line * 3 * SMALLER,
        linestyle="none",
        gid=f"runs {number}",
    )


def _sizes(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: readable(size, (*COUNT_UNITS, (3, "k")))))
    axes.set_xlabel("parameters N")
