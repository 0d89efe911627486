"""The loss over model sizes at the budget, by the law that the budget follows and by published ones."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from counting.cost.budget import BudgetPlan
from counting.cost.design import published_models
from counting.cost.design.published_models import PublishedModel
from counting.cost.scaling_laws import LAWS
from counting.cost.scaling_laws.curve import LossCurve, loss_curve
from counting.report.figures.drawing.colours import FAINT, INK, series
from counting.report.figures.drawing.sheet import Sheet
from counting.report.figures.words import model_title
from counting.report.format import COUNT_UNITS, readable, readable_dollars, readable_range, three_digits
from counting.report.results import Results

NAMES_APART = {"slide": 0.025, "column": 0.045}  # of the width of the axis, between names of published models


def draw_law(sheet: Sheet, results: Results) -> None:
    """A curve for each law with its optimum; on the first one the interval, and the models that were named."""
    plan = results.budget
    assert plan is not None
    curves = _curves(plan, results)
    sizes = (curves[0].parameters[0], curves[0].parameters[-1])
    published = [model for model in published_models() if sizes[0] <= model.parameters <= sizes[1]]
    ratios = {"height_ratios": (3, 1)} if published else {}
    axes, *below = sheet.panels(
        1 + bool(published),
        1,
        title=f"What {readable_dollars(plan.budget_usd)} of training buys: loss over model size",
        subtitle=_optimum(plan),
        legend=sheet.lines([curve.law for curve in curves], [series(number) for number in range(len(curves))]),
        inches=2.7,
        **ratios,
    )
    for number, curve in enumerate(curves):
        _draw_curve(axes, number, curve, sheet.measures.line * (1 if number == 0 else 0.6))
    _draw_interval(axes, curves[0])
    _draw_spent(axes, results)
    for each in (axes, *below):
        each.set_xscale("log")
        each.set_xlim(*sizes)
    _name_sizes(axes)
    axes.set_ylabel("predicted loss\n(nats per token)")
    axes.grid(visible=True)
    for each in below:
        axes.tick_params(labelbottom=False)
        _draw_published(each, sheet, published)
    (*_, lowest) = (axes, *below)
    lowest.set_xlabel("parameters N, on D = C / 6N tokens")


def _curves(plan: BudgetPlan, results: Results) -> list[LossCurve]:
    """Those of the law that the budget follows, of the laws asked for or else of all, all over the same sizes."""
    first = loss_curve(plan.law, plan.training_flops)
    fewest, most = first.parameters[0], first.parameters[-1]
    asked = None if results.laws is None else {row.law for row in results.laws.rows}
    others = [law for law in LAWS if law.name != plan.law.name and (asked is None or law.name in asked)]
    return [first, *(loss_curve(law, plan.training_flops, fewest=fewest, most=most) for law in others)]


def _optimum(plan: BudgetPlan) -> str:
    words = (
        f"{plan.scaling_law}: {readable(plan.optimal_parameters)} parameters on {readable(plan.optimal_tokens)} "
        f"tokens, loss {three_digits(plan.predicted_loss)}"
    )
    if plan.intervals is None:
        return words
    ends = plan.intervals.parameters
    return f"{words}; 95 % of N {readable_range(ends.low, ends.high)}"


def _draw_curve(axes: Axes, number: int, curve: LossCurve, width: float) -> None:
    look = series(number)
    axes.plot(
        curve.parameters,
        curve.loss,
        color=look.colour,
        linestyle=look.line,
        linewidth=width,
        gid=f"law {curve.law}",
    )
    axes.plot(
        [curve.optimum.parameters],
        [curve.optimum_loss],
        color=look.colour,
        marker=look.marker,
        linestyle="none",
        gid=f"optimum of {curve.law}",
    )


def _draw_interval(axes: Axes, curve: LossCurve) -> None:
    """The band of the loss at each size, and the interval of the optimal size."""
    if curve.low_loss is None or curve.high_loss is None or curve.intervals is None:
        return
    colour = series(0).colour
    axes.fill_between(curve.parameters, curve.low_loss, curve.high_loss, color=colour, alpha=0.25, linewidth=0)
    ends = curve.intervals.parameters
    axes.plot([ends.low, ends.high], [curve.optimum_loss] * 2, color=colour, marker="|", gid="interval of N")


def _draw_spent(axes: Axes, results: Results) -> None:
    """The models on which the budget is spent, at the size and loss by which the law takes them."""
    for spent in results.spent:
        for reading in spent.readings:
            place = (reading.parameters, reading.predicted_loss)
            axes.plot(*zip(place, strict=True), color=INK, marker="X", linestyle="none", gid=f"model {spent.model}")
            name = model_title(spent.model)
            if spent.mixture_of_experts:
                name += f" ({reading.taken_as})"
            axes.annotate(
                name,
                place,
                xytext=(0, 0.6),
                textcoords="offset fontsize",
                ha="center",
                va="bottom",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.3, "alpha": 0.75},
            )


def _draw_published(axes: Axes, sheet: Sheet, shown: Sequence[PublishedModel]) -> None:
    """The sizes of published models, and the names of as many as there is room for."""
    sizes = [model.parameters for model in shown]
    axes.plot(sizes, [0] * len(sizes), color=FAINT, marker="|", linestyle="none", clip_on=False, gid="published models")
    axes.set_ylim(0, 1)
    to_axes = axes.transData + axes.transAxes.inverted()
    apart = NAMES_APART[sheet.size]
    last = -1.0
    for model in shown:
        at = float(to_axes.transform((model.parameters, 0))[0])
        if at - last < apart or not apart / 2 < at < 1 - apart / 2:
            continue
        last = at
        axes.text(
            model.parameters,
            0.12,
            model.name,
            rotation=90,
            ha="center",
            va="bottom",
            size=sheet.measures.small,
            color=FAINT,
        )
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylabel("published", color=FAINT, size=sheet.measures.small)
    _name_sizes(axes)


def _name_sizes(axes: Axes) -> None:
    low, high = axes.get_xlim()
    sizes = [step * 10.0**power for power in range(4, 18) for step in (1, 2, 5) if low <= step * 10.0**power <= high]
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: readable(size, (*COUNT_UNITS, (3, "k")))))
    axes.xaxis.set_minor_locator(NullLocator())
