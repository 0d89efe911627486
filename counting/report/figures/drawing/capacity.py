"""The axis of memory, and a line for the memory of each GPU."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from counting.report.figures.drawing.colours import VERMILLION
from counting.report.figures.drawing.sheet import Sheet, in_units
from counting.report.figures.words import ByteUnit
from counting.step.fit import Fit

# Times the peak: a GPU with more memory has no line, which would press all else to the ground.
FARTHEST = 2.5  # over the thin areas of a step
FARTHEST_OF_BARS = 3.5
HEADROOM = 1.16


def capacities_shown(peak: int, fits: Sequence[Fit], farthest: float) -> dict[int, list[str]]:
    """The capacities that have a line, in bytes, each with its GPUs."""
    found: dict[int, list[str]] = {}
    for fit in fits:
        if fit.capacity_bytes <= farthest * peak:
            found.setdefault(fit.capacity_bytes, []).append(fit.gpu)
    return found


def memory_axis(
    axes: Axes, sheet: Sheet, peak: int, fits: Sequence[Fit], unit: ByteUnit, farthest: float = FARTHEST
) -> None:
    """From 0 to above the peak and the lines of the GPUs."""
    axes.set_ylim(0, HEADROOM * max(peak, *capacities_shown(peak, fits, farthest), 0))
    in_units(axes.yaxis, unit.bytes, 7 if sheet.is_slide else 5)
    axes.set_ylabel(f"memory ({unit.symbol})")


def draw_capacities(
    axes: Axes, sheet: Sheet, peak: int, fits: Sequence[Fit], unit: ByteUnit, farthest: float = FARTHEST
) -> None:
    """A line for each capacity, with the names of its GPUs at its left or right end in turn."""
    for number, (capacity, gpus) in enumerate(sorted(capacities_shown(peak, fits, farthest).items())):
        axes.axhline(capacity, color=VERMILLION, linestyle=(0, (6, 2)), gid=f"capacity of {' and '.join(gpus)}")
        left = number % 2 == 0
        axes.annotate(
            f"{', '.join(gpus)}: {unit.text(capacity)}",
            (0.01 if left else 0.99, capacity),
            xycoords=("axes fraction", "data"),
            xytext=(0, 0.3),
            textcoords="offset fontsize",
            ha="left" if left else "right",
            va="bottom",
            color=VERMILLION,
            size=sheet.measures.text,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85},
        )
