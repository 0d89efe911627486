"""The conventions of each kind of figure in words, which stand at its foot."""

from collections.abc import Callable, Mapping

from counting.analysis import Analysis
from counting.cost.conventions import has_indexer
from counting.counts import model_flops_in_words
from counting.report.conventions import forward_passes
from counting.report.figures.words import FLOP_WORDS, PEAK_WORDS, model_title
from counting.report.format import dollars, integer, recompute_in_words, scientific, short_percent
from counting.report.results import Fitted, Results


def _of_parameters(results: Results) -> str:
    words = "What the optimiser updates, tied matrices once; M = 10⁶, B = 10⁹, T = 10¹²."
    if any(analysis.parameters.total != analysis.parameters.active for analysis in results.analyses):
        words += " Active: those that one token uses."
    if any(analysis.parameters.mtp for analysis in results.analyses):
        words += " Multi-token prediction stands beside the main model and is not in the bar."
    return f"{words} Counted on the modules."


def _of_flops(results: Results) -> str:
    lengths = sorted({analysis.sequence_length for analysis in results.analyses})
    passes = forward_passes(any(map(has_indexer, results.analyses)))
    return (
        f"{passes} over sequences of {' or '.join(map(integer, lengths))} tokens, without recomputation. {FLOP_WORDS}"
    )


def _of_comparison(results: Results) -> str:
    comparison = results.comparison
    assert comparison is not None
    length, passes = comparison.models[0].sequence_length, model_flops_in_words(comparison.has_indexer)
    return (
        f"Active parameters: those that one token uses. FLOPs: the model's own count at {integer(length)} tokens a "
        f"sequence, {passes}. {FLOP_WORDS} {PEAK_WORDS} GPU-hours = FLOPs / (peak × MFU); cost = GPU-hours × "
        f"{dollars(comparison.price_usd_per_hour)}; without failed runs, evaluation, storage and people."
    )


def _of_bill(results: Results) -> str:
    passes = model_flops_in_words(any(run.has_indexer for run in results.runs))
    lengths = {model_title(run.model): integer(run.sequence_length) for run in results.runs}
    if len(set(lengths.values())) == 1:
        at = f"at {next(iter(lengths.values()))} tokens a sequence"
    else:
        at = f"at tokens a sequence: {', '.join(f'{title} {length}' for title, length in lengths.items())}"
    return (
        f"FLOPs: the model's own count, {passes}, {at}. {FLOP_WORDS} GPU-hours = training FLOPs / (peak × MFU); "
        f"cost = GPU-hours × price of an hour. {PEAK_WORDS} {_markers(results)} Without failed runs, "
        "evaluation, storage and people."
    )


def _markers(results: Results) -> str:
    """What the markers on a line of a bill are."""
    every = {tuple(outcome.mfu for outcome in on_gpu.outcomes) for run in results.runs for on_gpu in run.gpus}
    if len(every) > 1:
        return "Markers: the run at its MFU, low, middle and high where there are three."
    (mfus,) = every
    names = ("low", "middle", "high") if len(mfus) == 3 else ("",) * len(mfus)
    said = [f"{short_percent(mfu)} {name}".strip() for mfu, name in zip(sorted(mfus), names, strict=True)]
    return f"Markers: MFU of {', '.join(said)}."


def _of_law(results: Results) -> str:
    plan = results.budget
    assert plan is not None
    words = (
        f"C = {scientific(plan.training_flops)} FLOP, on {plan.best_gpu} at {short_percent(plan.mfu)} MFU. Loss = E + "
        "A / N^alpha + B / D^beta with 6 N D = C, markers at the optimum. Laws are of different data and tokenisers, "
        "so their losses do not compare; their optima do."
    )
    words += (
        " Band and bar: 95 % of the law's bootstrap."
        if plan.intervals
        else f" {plan.scaling_law} has no interval: no draws of a bootstrap are published with it."
    )
    laws = results.laws
    no_loss = [row.law for row in laws.rows if row.predicted_loss is None] if laws is not None else []
    if no_loss:
        words += f" Without a curve, as they say N or D and no loss: {', '.join(no_loss)}."
    elif laws is None:
        words += " Only laws of this form: others say N or D and no loss."
    if plan.extrapolated:
        words += " The optimum is beyond the runs that the law was fitted to."
    return f"{words} M = 10⁶, B = 10⁹, T = 10¹²."


def _of_memory(results: Results) -> str:
    (first, *_) = (analysis for analysis in results.analyses if analysis.timeline is not None)
    timeline, setup = first.timeline, first.setup
    assert timeline is not None and setup.micro_batches is not None
    words = (
        f"One device; {setup.precision}, {setup.optimizer}, {integer(setup.micro_batch[0])} × "
        f"{integer(setup.micro_batch[1])} tokens a micro-batch, recompute {recompute_in_words(setup.recompute)}. "
        "Measured allocation by allocation, at exact sizes; time is their order, not seconds."
    )
    if not timeline.all_moments:
        words += " Each group of neighbouring moments is drawn at its worst."
    if timeline.micro_batches > timeline.micro_batches_shown:
        words += f" Micro-batches 3 to {integer(timeline.micro_batches)} repeat the second."
    words += " Update: its worst moment."
    if first.fits:
        return f"{words} A GPU also holds the CUDA context and what the allocator reserves; GiB = 2³⁰ bytes."
    return f"{words} GB = 10⁹ bytes."


def _of_ranks(results: Results) -> str:
    words = (
        "The worst moment of the step on each class of equal ranks. Reserved: by torch's allocator, an estimate. "
        if any(each.memory.reserved_bytes for analysis in results.analyses for each in analysis.rank_classes or ())
        else "The worst moment of the step on each class of equal ranks, without what the allocator reserves. "
    )
    if any(analysis.layout is not None and analysis.layout.pp > 1 for analysis in results.analyses):
        words += "pp: the ranks of the pipeline in order. "
    compared = any(analysis.fits for analysis in results.analyses)
    unit = "GiB = 2³⁰ bytes" if compared else "GB = 10⁹ bytes"
    steps = dict.fromkeys(_step(analysis) for analysis in results.analyses if analysis.rank_classes)
    words = f"{'; or '.join(steps)}. {words}"
    return f"{words}A rank also holds the CUDA context and the buffers of communicators. {unit}."


def _step(analysis: Analysis) -> str:
    """What a step of a layout is run with."""
    setup, layout = analysis.setup, analysis.layout
    assert layout is not None and setup.micro_batches is not None
    noun = "micro-batch" if setup.micro_batches == 1 else "micro-batches"
    words = (
        f"{setup.precision}, {setup.optimizer}, {integer(setup.micro_batches)} {noun} of "
        f"{integer(setup.micro_batch[0])} × {integer(setup.micro_batch[1])} tokens, recompute "
        f"{recompute_in_words(setup.recompute)}"
    )
    return words if layout.schedule is None else f"{words}, schedule {layout.schedule}"


def _of_fit(results: Fitted) -> str:
    fitted = results.fitted
    words = (
        "Loss = E + A / N^alpha + B / D^beta, fitted to all runs at once (approach 3 of Hoffmann et al. 2022: the "
        f"least sum of Huber losses of the residuals). Median residual {100 * fitted.median_residual:.2g} %."
    )
    if fitted.derived is not None:
        words += " 6 N D = C."
    return words


_CAPTIONS: Mapping[str, Callable[[Results], str]] = {
    "comparison": _of_comparison,
    "law": _of_law,
    "bill": _of_bill,
    "ranks": _of_ranks,
    "memory": _of_memory,
    "parameters": _of_parameters,
    "flops": _of_flops,
}


def caption_of(kind: str, results: Results | Fitted) -> str:
    """The conventions of the figure of this kind, which these results have."""
    return _of_fit(results) if isinstance(results, Fitted) else _CAPTIONS[kind](results)
