"""What figures say is what the results say: annotations, ticks in their units, titles, captions and legends.

The results have numbers made by hand. Numbers and units are compared, by patterns, and not whole sentences.
"""

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgba
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon

from counting.report.figures import caption
from counting.report.figures.drawing import Sheet
from counting.report.figures.drawing.colours import COMPONENT_LOOKS, MEMORY_LOOKS
from counting.report.figures.words import byte_unit, layout_title, needed_of_gpus
from counting.report.results import Results
from counting.step.phase import PARTS
from tests.counting.report.figures.drawn import bars, data_of, sheet_of, texts
from tests.counting.report.figures.results import dense, results_of, routed, spread
from torch_models.layout import Layout

replace = msgspec.structs.replace
BILLION = 10**9
GIB = 2**30


def jobs(kind: str) -> Results:
    results = results_of(kind)
    assert isinstance(results, Results)
    return results


def numbers(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in re.findall(r"\d[\d,]*(?:\.\d+)?", text)]


def said(axes: Axes) -> list[str]:
    """The annotations in the axes."""
    return [text.get_text() for text in axes.texts]


def ticks(axis: Axis, *values: float) -> list[str]:
    """How the axis writes these values."""
    return [axis.get_major_formatter()(value, None) for value in values]


def legend_of(sheet: Sheet) -> dict[str, Any]:
    """What stands beside each name in the legend, as it is shown."""
    (legend,) = sheet.figure.findobj(Legend)
    assert isinstance(legend, Legend)
    shown = [text.get_text() for text in legend.get_texts()]
    return dict(zip(shown, legend.legend_handles, strict=True))


def line_look(*lines: Line2D) -> tuple[str, str, str]:
    """Colour, dashes and marker of a line, or of a curve and the points on it."""
    curve, points = lines[0], lines[-1]
    return str(curve.get_color()), str(curve.get_linestyle()), str(points.get_marker())


def area_look(area: Patch) -> tuple[Any, str]:
    return to_rgba(area.get_facecolor()), area.get_hatch() or ""


def named(axes: Axes, gid: str) -> Line2D:
    (found,) = (each for each in axes.lines if each.get_gid() == gid)
    return found


def test_gib_is_a_power_of_two_and_gb_of_ten() -> None:
    """80 x 1024³ bytes are 80 GiB; 5 x 1000³ bytes are 5 GB."""
    assert byte_unit(0, compared=True).text(80 * GIB) == "80 GiB"
    assert byte_unit(5 * BILLION, compared=False).text(5 * BILLION) == "5 GB"


def test_needed_of_gpus() -> None:
    (_, fit) = dense().fits or ()
    small = replace(fit, gpu="Small", needed_bytes=60 * GIB, capacity_bytes=40 * GIB, fits=False)
    large = replace(fit, gpu="Large", needed_bytes=50 * GIB, capacity_bytes=80 * GIB, fits=True)
    words = needed_of_gpus([small, large])
    assert numbers(words) == [60, 40, 50, 80]
    assert re.search(r"60 GiB of .*Small.*does not fit.* 50 GiB of .*Large.*fits", words)
    assert needed_of_gpus([]) == ""


def test_layout_by_axis() -> None:
    """48 ranks are 2 replicas of fsdp 4 x tp 6."""
    found = re.findall(r"(\w+) (\d+)", layout_title(Layout(num_gpus=48, dp=2, fsdp=4, tp=6)))
    assert found == [("dp", "2"), ("fsdp", "4"), ("tp", "6")]
    found = re.findall(r"(\w+) (\d+)", layout_title(Layout(dp=1, cp=2, pp=3, ep=2)))
    assert found == [("cp", "2"), ("pp", "3"), ("ep", "2")]


def test_parameters() -> None:
    """3 B + 9 B = 12 B, of which 4 B are active."""
    parts = {"attention": 3 * BILLION, "routed_experts": 9 * BILLION}
    totals = replace(routed().parameters, total=12 * BILLION, active=4 * BILLION, by_component=parts)
    sheet = sheet_of("parameters", Results(analyses=[replace(routed(), parameters=totals)]))
    (axes,) = sheet.figure.axes
    *inside, at_end = said(axes)
    assert [numbers(each) for each in inside] == [[3], [9]]
    assert re.fullmatch(r"12 B\s+4 B active", at_end)
    assert ticks(axes.xaxis, 0, 2.5 * BILLION, 12 * BILLION) == ["0", "2.5", "12"]
    assert "(B)" in axes.get_xlabel()
    assert {name: area_look(patch) for name, patch in legend_of(sheet).items()} == {
        COMPONENT_LOOKS[part].name: area_look(bar) for part, bar in zip(parts, bars(axes), strict=True)
    }


def test_flops() -> None:
    """The number at the end of each bar is its length; ticks are in MFLOP."""
    sheet = sheet_of("flops", jobs("flops"))
    (axes,) = sheet.figure.axes
    ends = [
        max(bar.get_x() + bar.get_width() for bar in bars(axes) if bar.get_y() < row < bar.get_y() + 1)
        for row in range(2)
    ]
    at_end = [text.get_text() for text in axes.texts if text.get_weight() == "bold"]
    found = [re.fullmatch(r"([\d.]+) ([kM])FLOP", text) for text in at_end]
    units = {"k": 1e3, "M": 1e6}
    assert [float(each[1]) * units[each[2]] for each in found if each] == pytest.approx(ends, rel=5e-3)
    assert ticks(axes.xaxis, 2.5e5, 1e6) == ["0.25", "1"]
    assert "(MFLOP)" in axes.get_xlabel()
    assert numbers(caption("flops", jobs("flops")))[:2] == [3, 32]


def test_comparison() -> None:
    comparison = jobs("comparison").comparison
    assert comparison is not None
    first, second = comparison.models
    first = replace(
        first,
        total_parameters=8 * BILLION,
        active_parameters=8 * BILLION,
        training_flops_per_token=48 * BILLION,
        outcome=replace(first.outcome, gpu_hours=2e6, cost_usd=5e6),
    )
    second = replace(
        second,
        total_parameters=12 * BILLION,
        active_parameters=4 * BILLION,
        training_flops_per_token=24 * BILLION,
        outcome=replace(second.outcome, gpu_hours=3e6, cost_usd=7.5e6),
        cost_over_cheapest=1.5,
    )
    results = replace(
        jobs("comparison"),
        comparison=replace(comparison, models=(first, second), tokens=2 * 10**12, mfu=0.45, price_usd_per_hour=2.5),
    )
    sheet = sheet_of("comparison", results)
    found = [[numbers(each) for each in said(axes) if numbers(each)] for axes in sheet.figure.axes]
    assert found == [[[8], [12, 4]], [[48], [24]], [[2], [3]], [[5], [7.5, 1.5]]]
    parameters, flops, hours, cost = (" ".join(said(axes)) for axes in sheet.figure.axes)
    assert re.search(r"8 B.*12 B.*4 B active", parameters)
    assert re.search(r"48 GFLOP.*24 GFLOP", flops)
    assert re.search(r"2 M.*3 M", hours)
    assert re.search(r"\$5 M.*\$7\.50? M.*× 1\.50?", cost)
    shown = " ".join(texts(sheet))
    assert re.search(r"\b2 T tokens", shown)
    assert re.search(r"\b45 % MFU", shown)
    assert "$2.50" in caption("comparison", results)


def test_memory() -> None:
    """Without a GPU in powers of ten, beside one in powers of two; the GPU's line has the GPU's capacity."""
    analysis = dense()
    assert analysis.timeline is not None
    peak = analysis.timeline.peak_bytes
    (alone,) = sheet_of("memory", Results(analyses=[replace(analysis, fits=None)])).figure.axes
    assert (numbers(said(alone)[0]), said(alone)[0][-3:]) == ([pytest.approx(peak / 1e6, rel=5e-3)], " MB")
    assert (ticks(alone.yaxis, 1_500_000), "(MB)" in alone.get_ylabel()) == (["1.5"], True)

    sheet = sheet_of("memory", jobs("memory"))
    (axes,) = sheet.figure.axes
    capacity, at_peak = said(axes)
    assert re.match(r"Near\b.* GiB$", capacity)
    assert numbers(capacity) == [pytest.approx(peak * 5 / 4 / GIB, rel=5e-3)]
    assert re.match(r"peak .* GiB$", at_peak)
    assert numbers(at_peak) == [pytest.approx(peak / GIB, rel=5e-3)]
    assert ticks(axes.yaxis, GIB, 2.5 * GIB) == ["1", "2.5"]
    assert "(GiB)" in axes.get_ylabel()
    areas = {str(patch.get_gid()): patch for patch in axes.patches if isinstance(patch, Polygon)}
    legend = legend_of(sheet)
    looks = {MEMORY_LOOKS[part].name: f"area of {part}" for part in PARTS if f"area of {part}" in areas}
    assert {name: area_look(legend[name]) for name in legend} == {
        name: area_look(areas[gid]) for name, gid in looks.items()
    }


def test_ranks() -> None:
    """2 GB + 1 GB are allocated at the worst moment, 4 to 5 GB reserved."""
    analysis = spread(fsdp=2, tp=2, reserved=True)
    (ranks,) = analysis.rank_classes or ()
    (phase,) = (phase for phase in ranks.memory.phases if phase.name == ranks.memory.peak_phase)
    sizes = dict.fromkeys(PARTS, 0) | {"parameters": 2 * BILLION, "transients": BILLION}
    phase = replace(phase, **sizes)
    reserved = (4 * BILLION, 5 * BILLION)
    memory = replace(ranks.memory, phases=(phase,), peak_bytes=3 * BILLION, reserved_bytes=reserved)
    spreads = [replace(analysis, rank_classes=(replace(ranks, memory=memory),))]
    sheet = sheet_of("ranks", Results(analyses=spreads))
    (axes,) = sheet.figure.axes
    words = " ".join(said(axes))
    assert sorted(numbers(words)) == [3, 5]
    assert re.search(r"5 (GB )?reserved|reserved:? 5\b", words)
    assert ticks(axes.yaxis, BILLION, 2.5 * BILLION) == ["1", "2.5"]
    assert "(GB)" in axes.get_ylabel()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["all 4 ranks"]
    legend = legend_of(sheet)
    drawn = [area_look(bar) for bar in bars(axes)]
    assert [area_look(legend[MEMORY_LOOKS[part].name]) for part in ("parameters", "transients")] == drawn[:2]
    assert len(legend) == 3


def priced(cost_of_an_hour: float) -> Results:
    """One run of 12, 10 and 8 million GPU-hours on 1,000 GPUs, at 30, 40 and 50 % MFU."""
    run = jobs("bill").runs[0]
    outcomes = tuple(
        replace(each, mfu=mfu, gpu_hours=hours, cost_usd=hours * cost_of_an_hour, days=hours / 1000 / 24)
        for each, mfu, hours in zip(run.gpus[0].outcomes, (0.3, 0.4, 0.5), (12e6, 10e6, 8e6), strict=True)
    )
    on_gpu = replace(run.gpus[0], num_gpus=1000, price_usd_per_hour=cost_of_an_hour, outcomes=outcomes)
    return replace(jobs("bill"), runs=[replace(run, tokens=2 * 10**12, gpus=(on_gpu,))])


def test_bill() -> None:
    """10 M hours x $3 = $30 M at the middle outcome; 10 M hours / 1,000 GPUs / 24 = 416.7 days."""
    sheet = sheet_of("bill", priced(3.0))
    by_mfu, by_time, by_price = sheet.figure.axes
    assert said(by_mfu) == ["$30 M"]
    for axes in (by_mfu, by_time):
        assert ticks(axes.xaxis, 0.4, 0.45) == ["40", "45"]
        assert "%" in axes.get_xlabel()
    for axes in (by_mfu, by_price):
        assert ticks(axes.yaxis, 30e6) == ["30"]
        assert "$ million" in axes.get_ylabel()
    assert ticks(by_time.yaxis, 400) == ["400"]
    assert "days" in by_time.get_ylabel()
    assert ticks(by_price.xaxis, 2.5) == ["2.5"]
    assert data_of(by_price.lines[1]) == ([3.0], [30e6])
    shown = " ".join([*texts(sheet), *(axes.get_title(loc="left") for axes in sheet.figure.axes)])
    assert re.search(r"\b2 T tokens", shown)
    assert re.search(r"\b40 % MFU", shown)
    assert re.search(r"H100 \$3\.00", shown)
    assert re.search(r"\b1,000 GPUs", shown)


def lines_of_bill(axes: Axes) -> list[tuple[str, str, str]]:
    """The looks of all pairs of a curve and its points."""
    return [line_look(*axes.lines[at : at + 2]) for at in range(0, len(axes.lines), 2)]


def test_legend_of_the_bill() -> None:
    """On each panel the lines have the look beside their names, and the price is that of their GPU."""
    sheet = sheet_of("bill", jobs("bill"))
    legend = legend_of(sheet)
    pairs = [(run, on_gpu) for run in jobs("bill").runs for on_gpu in run.gpus]
    assert len(legend) == len(pairs)
    for name, (run, on_gpu) in zip(legend, pairs, strict=True):
        assert re.search(rf"{run.model}\b.*\b{on_gpu.gpu}", name)
    for axes in sheet.figure.axes:
        assert lines_of_bill(axes) == [line_look(handle) for handle in legend.values()]
    points = [data_of(each) for each in sheet.figure.axes[2].lines[1::2]]
    assert points == [([on_gpu.price_usd_per_hour], [on_gpu.outcomes[1].cost_usd]) for _, on_gpu in pairs]


def test_law() -> None:
    plan = jobs("law").budget
    assert plan is not None
    assert plan.intervals is not None
    ends = replace(plan.intervals.parameters, low=60e9, high=80e9)
    intervals = replace(plan.intervals, parameters=ends)
    plan = replace(plan, optimal_parameters=70e9, optimal_tokens=1.4e12, predicted_loss=1.95, mfu=0.45)
    results = replace(jobs("law"), budget=replace(plan, intervals=intervals))
    sheet = sheet_of("law", results)
    shown = " ".join(texts(sheet))
    assert re.search(r"70 B param\w+ on 1\.40? T tokens, loss 1\.95\b", shown)
    assert re.search(r"95 % .*60\W80 B", shown)
    assert re.search(r"\$5 M\b", shown)
    assert re.search(r"\b45 % MFU", caption("law", results))
    above, *below = sheet.figure.axes
    for axes in (above, *below):
        assert [each.split() for each in ticks(axes.xaxis, 2e10, 5e12)] == [["20", "B"], ["5", "T"]]
    for name, handle in legend_of(sheet).items():
        assert line_look(named(above, f"law {name}"), named(above, f"optimum of {name}")) == line_look(handle)


def test_fit() -> None:
    sheet = sheet_of("fit", results_of("fit"))
    losses, residuals = sheet.figure.axes
    assert ticks(residuals.yaxis, -0.0025, 0.01) == ["-0.25", "1"]
    assert "%" in residuals.get_ylabel()
    for axes in (losses, residuals):
        assert [each.split()[1] for each in ticks(axes.xaxis, 3e8, 1e9)] == ["M", "B"]
        assert [numbers(each) for each in ticks(axes.xaxis, 3e8, 1e9)] == [[300], [1]]
    shown = " ".join(texts(sheet))
    assert re.search(r"\b7 runs", shown)
    assert re.search(r"E = 1\.82, A = 482, alpha = 0\.348, B = 2,085, beta = 0\.366", shown)
    assert re.search(r"residual 0\.2 %", caption("fit", results_of("fit")))
    names: Sequence[str] = [name for name in legend_of(sheet) if "FLOP" in name]
    assert [float(name.split()[0]) for name in names] == [1e19, 1e20]
    for number, name in enumerate(names):
        look = line_look(named(losses, f"curve {number}"), named(losses, f"runs {number}"))
        assert line_look(legend_of(sheet)[name]) == look
