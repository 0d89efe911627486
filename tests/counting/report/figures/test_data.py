"""What figures draw is what the results say."""

from itertools import accumulate

import pytest
from matplotlib.patches import Polygon

from counting.cost.bill_curves import bill_curves
from counting.cost.budget import plan_budget
from counting.cost.comparison import compare
from counting.cost.conventions import training_flops_per_token
from counting.cost.design import published_models
from counting.cost.fit_curves import fit_curves
from counting.cost.run import RunPlan, plan_run
from counting.cost.scaling_laws.curve import loss_curve
from counting.report.figures import caption
from counting.report.results import Fitted, Results
from counting.step.phase import PARTS
from tests.counting.report.figures.drawn import axes_of, bars, data_of, line, sheet_of, texts
from tests.counting.report.figures.results import dense, results_of, routed, sparse


def jobs(kind: str) -> Results:
    results = results_of(kind)
    assert isinstance(results, Results)
    return results


def test_parameters_by_component() -> None:
    (axes,) = axes_of("parameters", jobs("parameters"))
    found = bars(axes)
    for row, analysis in enumerate(jobs("parameters").analyses):
        parts = {name: size for name, size in analysis.parameters.by_component.items() if size}
        of_row = [bar for bar in found if bar.get_y() < row < bar.get_y() + bar.get_height()]
        assert sorted(bar.get_width() for bar in of_row) == sorted(parts.values())
        assert [bar.get_x() for bar in of_row] == [0, *accumulate(bar.get_width() for bar in of_row)][:-1]
        assert sum(bar.get_width() for bar in of_row) == analysis.parameters.total


def test_training_flops_of_a_token_by_component() -> None:
    (axes,) = axes_of("flops", jobs("flops"))
    found = bars(axes)
    for row, analysis in enumerate(jobs("flops").analyses):
        of_row = [bar.get_width() for bar in found if bar.get_y() < row < bar.get_y() + bar.get_height()]
        assert sum(of_row) == pytest.approx(float(training_flops_per_token(analysis)), rel=1e-12)
    mtp = 3 * routed().mtp_forward_flops / routed().setup.tokens
    assert mtp in [bar.get_width() for bar in found], "multi-token prediction is a part of its own"


def test_comparison() -> None:
    results = jobs("comparison")
    assert results.comparison is not None
    parameters, flops, hours, cost = axes_of("comparison", results)
    models = results.comparison.models
    assert [bar.get_width() for bar in bars(flops)] == [model.training_flops_per_token for model in models]
    assert [bar.get_width() for bar in bars(hours)] == [model.outcome.gpu_hours for model in models]
    assert [bar.get_width() for bar in bars(cost)] == [model.outcome.cost_usd for model in models]
    first, *second = models
    solid, hatched = second[0].active_parameters, second[0].total_parameters - second[0].active_parameters
    assert [bar.get_width() for bar in bars(parameters)] == [first.total_parameters, solid, hatched]


def test_memory_over_time() -> None:
    """Each area goes up to the sum of its part and those below; the marker is at the step's peak, to the byte."""
    analysis = dense()
    timeline, memory = analysis.timeline, analysis.memory
    assert timeline is not None
    assert memory is not None
    (axes,) = axes_of("memory", jobs("memory"))
    areas = {str(patch.get_gid()): patch for patch in axes.patches if isinstance(patch, Polygon) and patch.get_gid()}
    top = [0] * len(timeline.changes)
    for part in PARTS:
        if not any(timeline.parts[part]) and not any(getattr(phase, part) for phase in timeline.after_backward):
            assert f"area of {part}" not in areas
            continue
        top = [below + size for below, size in zip(top, timeline.parts[part], strict=True)]
        corners = areas[f"area of {part}"].get_xy()[1:-2]
        assert [tuple(corner) for corner in corners] == list(zip(timeline.changes, top, strict=True))
    assert top == list(timeline.totals)
    ((_, peak),) = zip(*line(axes, "peak"), strict=True)
    assert peak == memory.peak_bytes
    after = [phase for phase in memory.phases if phase.name in ("gradient clipping", "optimiser step")]
    heights = [bar.get_height() for bar in bars(axes)]
    assert heights == [size for phase in after for part in PARTS if (size := getattr(phase, part))]


def test_only_a_gpu_near_the_peak_has_a_line() -> None:
    analysis = dense()
    assert analysis.fits is not None
    (axes,) = axes_of("memory", jobs("memory"))
    lines = {str(each.get_gid()): data_of(each)[1] for each in axes.lines if "capacity" in str(each.get_gid())}
    assert lines == {"capacity of Near": [analysis.fits[0].capacity_bytes] * 2}
    assert "on H100 (fits)" in "".join(texts(sheet_of("memory", jobs("memory"))))


def test_memory_of_ranks() -> None:
    results = jobs("ranks")
    (axes,) = axes_of("ranks", results)
    found = bars(axes)
    for ranks in [each for analysis in results.analyses for each in analysis.rank_classes or ()]:
        (worst,) = [phase for phase in ranks.memory.phases if phase.name == ranks.memory.peak_phase]
        parts = [size for part in PARTS if (size := getattr(worst, part))]
        heights = [bar.get_height() for bar in found[: len(parts)]]
        assert heights == parts
        assert sum(heights) == ranks.memory.peak_bytes
        found = found[len(parts) :]
        if ranks.memory.reserved_bytes is not None:
            above = found.pop(0)
            assert above.get_y() + above.get_height() == max(ranks.memory.reserved_bytes)
    assert found == []


def test_bill() -> None:
    results = jobs("bill")
    by_mfu, by_time, by_price = axes_of("bill", results)
    curves = bill_curves(results.runs)
    outcomes = [on_gpu.outcomes for run in results.runs for on_gpu in run.gpus]
    assert len(curves) == len(outcomes) == 4
    drawn = [[data_of(each) for each in axes.lines] for axes in (by_mfu, by_time, by_price)]
    assert drawn[0][::2] == [(list(curve.mfus), list(curve.costs_usd)) for curve in curves]
    assert drawn[1][::2] == [(list(curve.mfus), list(curve.days or ())) for curve in curves]
    assert drawn[2][::2] == [(list(curve.prices_usd_per_hour), list(curve.costs_at_prices_usd)) for curve in curves]
    assert drawn[0][1::2] == [([each.mfu for each in of], [each.cost_usd for each in of]) for of in outcomes]
    assert drawn[1][1::2] == [([each.mfu for each in of], [each.days for each in of]) for of in outcomes]


def test_law_with_its_interval_and_published_models() -> None:
    results = jobs("law")
    plan = results.budget
    assert plan is not None
    above, below = axes_of("law", results)
    curve = loss_curve(plan.law, plan.training_flops)
    assert line(above, "law ours") == (list(curve.parameters), list(curve.loss))
    assert line(above, "optimum of ours") == ([curve.optimum.parameters], [curve.optimum_loss])
    assert curve.optimum.parameters == plan.optimal_parameters
    assert plan.intervals is not None
    assert line(above, "interval of N")[0] == [plan.intervals.parameters.low, plan.intervals.parameters.high]
    (band,) = above.collections
    corners = band.get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == (min(curve.low_loss or ()), max(curve.high_loss or ()))
    sizes, _ = line(below, "published models")
    in_range = [m.parameters for m in published_models() if sizes[0] <= m.parameters <= sizes[-1]]
    assert sizes == in_range
    (reading,) = results.spent[0].readings
    assert line(above, "model dense") == ([reading.parameters], [reading.predicted_loss])


def test_fit_by_budget() -> None:
    results = results_of("fit")
    assert isinstance(results, Fitted)
    losses, residuals = axes_of("fit", results)
    runs, curves = results.fitted.runs, fit_curves(results.fitted)
    for number, chosen in enumerate((runs[:3], runs[3:6], runs[6:])):
        sizes = [run.parameters for run in chosen]
        assert line(losses, f"runs {number}") == (sizes, [run.loss for run in chosen])
        assert line(residuals, f"runs {number}") == (sizes, [run.residual for run in chosen])
    for number, each in enumerate(curves.budgets):
        assert line(losses, f"curve {number}") == (list(each.curve.parameters), list(each.curve.loss))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("parameters", "What the optimiser updates"),
        ("flops", "3 × the forward pass over sequences of 32 tokens"),
        ("comparison", "MFU is against the dense peak"),
        ("memory", "time is their order, not seconds"),
        ("ranks", "Reserved: by torch's allocator, an estimate"),
        ("ranks", "mixed, adamw, 2 micro-batches of 1 × 32 tokens, recompute none"),
        ("ranks", "schedule 1f1b"),
        ("bill", "3 × forward, at 32 tokens a sequence"),
        ("bill", "Markers: MFU of 30 % low, 40 % middle, 50 % high"),
        ("law", "others say N or D and no loss"),
        ("bill", "GPU-hours = training FLOPs / (peak × MFU)"),
        ("law", "95 % of the law's bootstrap"),
        ("fit", "approach 3 of Hoffmann et al. 2022"),
    ],
)
def test_caption_states_the_conventions(kind: str, words: str) -> None:
    results = results_of(kind)
    assert words in caption(kind, results)
    shown = " ".join(" ".join(texts(sheet_of(kind, results))).split())
    assert " ".join(caption(kind, results).split()) in shown


@pytest.mark.parametrize("kind", ["flops", "bill", "comparison"])
def test_caption_says_that_an_indexer_counts_once(kind: str) -> None:
    """Where one of the models has one."""
    results, once = jobs(kind), "3 × forward, an indexer's once"
    plan = RunPlan(tokens=10**9, gpus=("H100",), mfus=(0.4,))
    models = [dense(), sparse()]
    with_indexer = Results(
        analyses=models, runs=[plan_run(model, plan) for model in models], comparison=compare(models, plan)
    )
    assert once in caption(kind, with_indexer)
    assert once not in caption(kind, results)


def test_bill_has_a_colour_for_each_model_and_a_line_for_each_gpu() -> None:
    lines = axes_of("bill", jobs("bill"))[0].lines[::2]
    looks = [(each.get_color(), each.get_linestyle()) for each in lines]
    assert [colour == looks[0][0] for colour, _ in looks] == [True, True, False, False]
    assert [style == looks[0][1] for _, style in looks] == [True, False, True, False]


def test_law_without_a_published_model_in_range_has_one_panel() -> None:
    budget = plan_budget(5e12, gpus=["H100"])
    (axes,) = axes_of("law", Results(budget=budget))
    assert axes.get_xlabel().startswith("parameters N")
