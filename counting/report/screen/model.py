"""One model on the first screen: parameters, FLOPs per token, memory, and the GPUs on which a step fits."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from counting.analysis import Analysis
from counting.cost.conventions import main_attention_core, training_flops_per_token, trains_mtp
from counting.report.format import FLOP_UNITS, Bytes, integer, percent, readable, recompute_in_words, three_digits
from counting.report.model.flops import CHOSEN, WINDOWS, keys_visited
from counting.report.model.proof import MEASURED_IN_WORDS, proof_in_words
from counting.report.screen.fits import fits_by_gpu, fits_in_words, reserved_fact
from counting.report.screen.lines import Lines, listed
from counting.step.memory import StepMemory
from counting.step.notes import reason_of_no_step

if TYPE_CHECKING:
    from counting.step.fit import Fit

LARGEST_SHARES = 3
# Field -> label on this screen, for the memory of a layer and of a step.
LAYER_PARTS = {"weights": "weights", "boundary": "input", "saved": "saved", "transients": "transients"}
STEP_PARTS = {"activations": "activations", "logits_and_loss": "logits and loss", "transients": "transients"}

# Attention to which keys counts, instead of its full square.
KEYS = {WINDOWS: "its window", CHOSEN: "the keys that the indexer chooses"}


def model_screen(lines: Lines, analysis: Analysis, on_catalogue: "Sequence[Fit]") -> None:
    """Add all facts of one model."""
    setup = analysis.setup
    family = "" if analysis.model_type == analysis.name else f"{analysis.model_type}, "
    kernels = "" if setup.kernels == "fused" else f", {setup.kernels} kernels"
    lines.heading(f"{analysis.name}: {family}{_layers(analysis)}, {_length(analysis)}{kernels}")
    lines.fact("above", f"parameters: the model; TFLOPs, GBs: one {analysis.main_layer.kind} layer's forward")
    lines.fact("parameters", f"{_sizes(analysis)}: {_shares(analysis)}{_beside(analysis)}")
    lines.fact("FLOPs a token", _flops(analysis))
    if said := scans_in_words(analysis):
        lines.fact("scans", said)
    lines.fact("one layer", _layer_memory(analysis))
    if analysis.memory is None:
        reason = reason_of_no_step(analysis.notes)
        lines.fact("a training step", f"is not measured{f': {reason}' if reason else ''}")
        return
    if analysis.rank_classes:
        lines.fact("on one device", _on_one_device(analysis.memory))
        return
    _step_memory(lines, analysis, analysis.memory)
    if fits := _all_fits(analysis, on_catalogue):
        lines.fact("fits one", fits_in_words(fits, analysis))


def scans_in_words(analysis: Analysis) -> str:
    """The scans that carry a state along the sequence, their products, and what is elementwise; empty without any."""
    if not analysis.elementwise_operations:
        return ""
    by_formula = list(dict.fromkeys(scan for layer in analysis.layers for scan in layer.scans_by_formula))
    every = dict.fromkeys(scan for layer in analysis.layers for scan in layer.scans)
    others = [scan for scan in every if scan not in by_formula]
    share = percent(analysis.scan_flops / analysis.forward_flops)
    products = [f"{listed(by_formula)}: {share} of the FLOPs, by formula"] if by_formula else []
    beside = [f"beside {'it' if len(by_formula) == 1 else 'them'} {listed(others)}" if by_formula else listed(others)]
    operations = three_digits(100 * analysis.elementwise_operations / analysis.forward_flops)
    return "; ".join(
        [
            *products,
            *(beside if others else []),
            f"elementwise operations: {operations} for each 100 FLOPs, not among them",
        ]
    )


def short_model_screen(
    lines: Lines, analysis: Analysis, on_catalogue: "Sequence[Fit]", *, compared: bool, ranks_above: bool
) -> None:
    """Add one model in three lines.

    Without the sequence length if models are `compared`, which all have the same one; without what a spread step fits,
    if that stands above.
    """
    lines.heading(f"{analysis.name}: {_layers(analysis)}{'' if compared else f', {_length(analysis)}'}")
    forward, training = _forward_and_training(analysis)
    lines.text(f"{_sizes(analysis, ' parameters')}; a token: forward {forward}, training {training}")
    peak, memory = analysis.main_layer.peak_memory_bytes, analysis.memory
    layer = "one layer is not measured" if peak is None else f"one layer {Bytes(peak)(peak)}"
    if memory is None:
        lines.text(f"{layer}; no training step is measured")
        return
    where = ""
    if analysis.fits:
        where = f"; fits {fits_by_gpu(analysis.fits, analysis.setup, most=3)}"
    elif on_catalogue:
        where = f"; fits {fits_in_words(on_catalogue, analysis, most=2)}"
    step = f"a step {Bytes(memory.peak_bytes)(memory.peak_bytes)}"
    if analysis.rank_classes:
        from counting.report.screen.ranks import rank_in_short

        step, where = rank_in_short(analysis), "" if ranks_above else where
    lines.text(f"{layer}; {step}{where}")


def ignored_screen(lines: Lines, analyses: Sequence[Analysis]) -> None:
    """Add the fields that were ignored on request, of all models in one line."""
    of_models = [
        f"{', '.join(analysis.ignored_fields)}{f' ({analysis.name})' if len(analyses) > 1 else ''}"
        for analysis in analyses
        if analysis.ignored_fields
    ]
    if of_models:
        lines.text(f"Ignored on request, not understood: {'; '.join(of_models)}")


def conventions_screen(lines: Lines, analyses: Sequence[Analysis]) -> None:
    """Add the conventions of the numbers, and how many numbers are proven by which witnesses."""
    visited = {kind for analysis in analyses for kind in keys_visited(analysis)}
    attention = ", or ".join(["attention's full square", *(KEYS[kind] for kind in KEYS if kind in visited)])
    sizes = {analysis.setup.micro_batch_size for analysis in analyses}
    batch = "one sequence" if sizes == {1} else "one micro-batch"
    device = "" if any(analysis.rank_classes for analysis in analyses) else ", one device"
    text = f"{batch}{device}; matrix products only, 2 FLOPs a multiply-add, {attention}; GB = 10^9 bytes"
    lines.note("conventions", text)
    proofs: dict[str, list[str]] = {}
    for analysis in analyses:
        number, _, by = proof_in_words(analysis.agreement).partition(" ")
        proofs.setdefault(by, []).append(number if len(analyses) == 1 else f"{number} ({analysis.name})")
    proof = "; ".join(f"{', '.join(numbers)} {by}" for by, numbers in proofs.items())
    for text, said in reversed(MEASURED_IN_WORDS.items()):
        if measured := [analysis.name for analysis in analyses if analysis.proof == text]:
            proof = f"{said}{f': {listed(measured)}' if len(analyses) > 1 else ''}. {proof}"
    if bounded := [part for analysis in analyses if (part := _bounded(analysis, named=len(analyses) > 1))]:
        proof += f"; peaks of {listed(bounded)} measured, no formula: below a bound"
    lines.fact("proof", proof)


def _bounded(analysis: Analysis, *, named: bool) -> str:
    """How many classes of ranks have a peak without a formula, which has a bound; empty if none has."""
    number = sum(each.proof == "measured, no formula" for each in analysis.rank_classes or ())
    classes = f"{integer(number)} class{'' if number == 1 else 'es'} of ranks"
    return f"{classes}{f' ({analysis.name})' if named else ''}" if number else ""


def _layers(analysis: Analysis) -> str:
    total = sum(layer.count for layer in analysis.layers)
    return f"{total} layer{'' if total == 1 else 's'}"


def _length(analysis: Analysis) -> str:
    """The shape of a micro-batch, and the source of the sequence length."""
    size = analysis.setup.micro_batch_size
    sequences = "" if size == 1 else f"{integer(size)} x "
    return f"{sequences}{integer(analysis.sequence_length)} tokens ({length_said_by(analysis)})"


def length_said_by(analysis: Analysis) -> str:
    """The source of the length: "given", or "from" a config field without the names of the objects that contain it."""
    source = analysis.setup.sequence_length_source or ""
    field, of, model = source.partition(" of ")
    return source if source == "given" else f"from {field.rpartition('.')[2]}{of}{model}"


def _sizes(analysis: Analysis, noun: str = "") -> str:
    parameters = analysis.parameters
    active = "" if parameters.active == parameters.total else f", active {readable(parameters.active)}"
    return f"{readable(parameters.total)}{noun}{active}"


def _shares(analysis: Analysis) -> str:
    parameters = analysis.parameters
    largest = sorted(parameters.by_component.items(), key=lambda entry: -entry[1])[:LARGEST_SHARES]
    return ", ".join(f"{name} {percent(count / parameters.total, 1)}" for name, count in largest if count)


def _beside(analysis: Analysis) -> str:
    mtp = analysis.parameters.mtp
    return f"; beside them mtp {readable(mtp)}" if mtp else ""


def _forward_and_training(analysis: Analysis) -> tuple[str, str]:
    """FLOPs of one token; the first without a unit if both units are the same."""
    forward = readable(analysis.forward_flops / analysis.setup.tokens, FLOP_UNITS)
    training = readable(float(training_flops_per_token(analysis)), FLOP_UNITS)
    number, _, unit = forward.partition(" ")
    return number if training.endswith(f" {unit}") else forward, training


def _flops(analysis: Analysis) -> str:
    """FLOPs of one token: forward with the share of attention, and training."""
    core, step, recompute = main_attention_core(analysis), analysis.training, analysis.setup.recompute
    visited = keys_visited(analysis)
    attention = f"attention {' and '.join(visited)}" if visited else "attention's square"
    forward, training = _forward_and_training(analysis)
    mtp = " with mtp" if trains_mtp(analysis) else ""
    share = percent(core.as_run / analysis.forward_flops, 1)
    if analysis.forward_only_flops:
        attention += f", {percent(analysis.forward_only_flops / analysis.forward_flops, 1)} indexer"
    text = f"forward {forward} ({share} {attention}), training {training}{mtp}"
    if step is not None and recompute != "none":
        executed = readable(step.hardware_flops_per_token, FLOP_UNITS)
        text += f"; executed {executed} with recompute {recompute_in_words(recompute)}"
    return text


def _layer_memory(analysis: Analysis) -> str:
    parts, peak = analysis.main_layer.peak_memory_parts, analysis.main_layer.peak_memory_bytes
    if parts is None or peak is None:
        return "its memory is not measured"
    size = Bytes(peak)
    return f"{size(peak)}: {_in_numbers(size, {name: getattr(parts, field) for field, name in LAYER_PARTS.items()})}"


def _step_memory(lines: Lines, analysis: Analysis, memory: StepMemory) -> None:
    """Add the peak of a step, the model states, and the peak of each other kind of memory (each at its own time)."""
    size, setup, states = Bytes(memory.peak_bytes), analysis.setup, memory.states
    chunk = "" if setup.loss_chunk is None else f", loss chunk {integer(setup.loss_chunk)}"
    batches = "" if setup.micro_batches == 1 else f", {integer(setup.micro_batches or 1)} micro-batches"
    clipped = ", clipped gradients" if setup.clip_gradients else ""
    recompute = f"recompute {recompute_in_words(setup.recompute)}"
    compiled = ", compiled layers" if setup.execution == "compiled" else ""
    how = f"{setup.precision}, {setup.optimizer}, {recompute}{compiled}{chunk}{batches}{clipped}"
    lines.fact("a training step", f"{size(memory.peak_bytes)}, in the {memory.peak_phase}; {how}")
    optimizer_state = memory.phases[0].optimizer_state
    held = {"weights": states.weights, "gradients": states.gradients, "optimiser": optimizer_state}
    lines.fact("  states", f"{size(states.total)}: {_in_numbers(size, held)}")
    most = {name: max(getattr(phase, field) for phase in memory.phases) for field, name in STEP_PARTS.items()}
    lines.fact("  beside, up to", _in_numbers(size, most))
    if not analysis.fits:  # else it stands with the fits
        reserved_fact(lines, "  reserved", memory)


def _on_one_device(memory: StepMemory) -> str:
    size = Bytes(memory.peak_bytes)
    return f"the step would take {size(memory.peak_bytes)}, of which {size.number(memory.states.total)} for states"


def _in_numbers(size: Bytes, parts: Mapping[str, int]) -> str:
    """The names and sizes of all parts above 0, without the unit."""
    return ", ".join(f"{name} {size.number(value)}" for name, value in parts.items() if value)


def _all_fits(analysis: Analysis, on_catalogue: "Sequence[Fit]") -> "list[Fit]":
    """The fits on the requested GPUs, then on the other GPUs of the catalogue."""
    asked = analysis.fits or ()
    names = {fit.gpu for fit in asked}
    return [*asked, *(fit for fit in on_catalogue if fit.gpu not in names)]
