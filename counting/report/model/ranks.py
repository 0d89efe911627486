"""The tables of a step that is spread over ranks: memory, FLOPs and collectives of each class of equal ranks."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import msgspec

from counting.analysis import Analysis
from counting.counts import model_flops_in_words
from counting.ranks.result import RankAnalysis, totals_over_ranks, worst_by_place, worst_of_classes
from counting.report.format import integer
from counting.report.layout import axes_in_words, ranks_in_words, recipe_on_ranks
from counting.report.model.reserved import reserved_tables
from counting.report.model.stages import places_table, stages_table
from counting.report.model.step_memory import step_memory_table
from counting.report.tables import Table, rows_table
from counting.step.phase import Phase
from torch_models.layout import Layout


def rank_tables(analysis: Analysis) -> Iterator[Table]:
    """The classes side by side; memory and FLOPs of each; what each sends; and the sums over all ranks."""
    layout, classes = analysis.layout, analysis.rank_classes
    if layout is None or not classes:
        return
    yield _classes_table(layout, classes)
    if layout.pp > 1:
        yield places_table(layout, classes)
        yield stages_table(layout)
    classes = _shown(classes)
    groups = _alike(classes, _without_optimizer_state)
    for each, _ in groups:
        which = ranks_in_words(each, layout) if len(groups) == len(classes) else f"rank {integer(each.first_rank)}"
        recipe = recipe_on_ranks(analysis.setup, layout)
        if len(groups) < len(classes):
            recipe += ". The classes above differ by their moments alone, and by as much at each peak"
        yield step_memory_table(each.memory, analysis.setup, of=f"a rank ({which})", recipe=recipe)
        yield from reserved_tables(each.memory, of=f"a rank ({which})")
    yield _flops_table(analysis, classes)
    if layout.framework == "torch":
        yield _collectives_table(classes)
    if analysis.undivided is not None:
        yield _sums_table(analysis, layout, analysis.rank_classes or ())


def _shown(classes: tuple[RankAnalysis, ...]) -> tuple[RankAnalysis, ...]:
    """All classes; of a pipeline's many, those of its first rank, of the worst and of its last rank."""
    places = worst_by_place(classes)
    if len(places) <= MOST_PLACES:
        return classes
    kept = {places[0].stage, worst_of_classes(classes).stage, places[-1].stage}
    return tuple(each for each in classes if each.stage in kept)


def _without_optimizer_state(ranks: RankAnalysis) -> tuple[Phase, ...]:
    return tuple(msgspec.structs.replace(phase, optimizer_state=0) for phase in ranks.memory.phases)


SKIPPED = (
    "Skipped by causality: of the model FLOPs, those of blocks of keys that ring attention calls no kernel for; "
    "hardware FLOPs are without them."
)
MOST_PLACES = 4  # ranks of a pipeline with tables of their own

_Of = TypeVar("_Of")


def _alike(classes: Sequence[RankAnalysis], of: Callable[[RankAnalysis], _Of]) -> list[tuple[RankAnalysis, str]]:
    """The classes that differ in `of`, each with its name in brackets; one without a name if all are alike."""
    distinct: list[RankAnalysis] = []
    for each in classes:
        if all(of(each) != of(other) for other in distinct):
            distinct.append(each)
    return [(each, f" (from {each.first_rank})" if len(distinct) > 1 else "") for each in distinct]


def _classes_table(layout: Layout, classes: tuple[RankAnalysis, ...]) -> Table:
    fields = ["weights", "gradients", "masters", "moments"]
    if not any(each.memory.states.masters for each in classes):
        fields.remove("masters")
    headings = ["lowest rank", "ranks", "parameters", *fields, "peak"]
    table = rows_table(f"Classes of equal ranks, bytes a rank: {axes_in_words(layout)}", headings, names=1)
    for each in classes:
        bytes_ = (*(getattr(each.memory.states, field) for field in fields), each.memory.peak_bytes)
        table.add_row(*map(integer, (each.first_rank, each.count, each.parameters, *bytes_)))
    table.caption = (
        "Parameters: numbers that a rank updates. Bytes are of shards as stored, padded where the ranks do not divide "
        "them; gradients when backward is complete; moments with step counts."
        if layout.framework == "torch"
        else "Parameters: numbers that a rank updates. Weights and gradients are whole on each rank."
    )
    return table


def _flops_table(analysis: Analysis, classes: tuple[RankAnalysis, ...]) -> Table:
    """FLOPs of one step by component: those of a rank, and those of the undivided model on one device."""
    step = analysis.training
    assert step is not None
    alike = _alike(classes, lambda each: each.forward_flops_by_component)
    headings = ["component", *(f"a rank{which}" for _, which in alike), "one device"]
    table = rows_table("FLOPs of a rank in one step", headings)
    for component, undivided in step.forward_flops_by_component.items():
        of_ranks = [each.forward_flops_by_component.get(component, 0) for each, _ in alike]
        if any(of_ranks) or undivided:
            table.add_row(component, *map(integer, (*of_ranks, undivided)))
    table.add_section()
    for label, field in (
        ("forward", "forward_flops"),
        (f"model FLOPs, {model_flops_in_words(bool(analysis.forward_only_flops))}", "model_flops"),
        ("skipped by causality", "skipped_by_causality"),
        ("hardware FLOPs", "hardware_flops"),
    ):
        numbers = (*(getattr(each, field) for each, _ in alike), getattr(step, field, 0))
        if any(numbers) or field != "skipped_by_causality":
            table.add_row(label, *map(integer, numbers))
    divided = "; those of pp have layers of their own, those of cp positions" if _divides(analysis) else ""
    skipped = " " + SKIPPED if any(each.skipped_by_causality for each, _ in alike) else ""
    table.caption = f"By component: forward. Each rank of dp and fsdp has micro-batches of its own{divided}.{skipped}"
    return table


def _divides(analysis: Analysis) -> bool:
    layout = analysis.layout
    return layout is not None and layout.pp * layout.cp > 1


def _collectives_table(classes: tuple[RankAnalysis, ...]) -> Table:
    """Every collective that a rank calls in a step."""
    headings = ["phase", "axis", "operation", "calls", "bytes in", "bytes out"]
    alike = _alike(classes, lambda each: each.collectives)
    several = len(alike) > 1
    title = "Collectives of a rank in one step"
    table = rows_table(title, (["ranks"] if several else []) + headings, names=4 if several else 3)
    for each, which in alike:
        for found in each.collectives:
            row = [found.phase, found.axis, found.op.replace("_", "-")]
            row += map(integer, (found.count, found.bytes_in, found.bytes_out))
            table.add_row(*([which.strip(" ()")] if several else []), *row)
        table.add_section()
    sentences = [
        "Bytes that a rank reads and writes, over all calls. What is recomputed belongs to backward. An all-reduce is "
        "in place; of an all-to-all, bytes in are the rows sent, bytes out those received."
        if any(each.collectives for each in classes)
        else "None: the rank is alone."
    ]
    if any(found.op == "receive" for each in classes for found in each.collectives):
        sentences.append(
            "torch has a buffer for each message before the first pass: together the bytes out of all receives."
        )
    table.caption = " ".join(sentences)
    return table


def _sums_table(analysis: Analysis, layout: Layout, classes: tuple[RankAnalysis, ...]) -> Table:
    """The sums over all ranks beside what the undivided model gives."""
    undivided, micro_batches = analysis.undivided, analysis.setup.micro_batches
    assert undivided is not None and micro_batches is not None
    found, expected = totals_over_ranks(classes, micro_batches), undivided.over_ranks(layout)
    rows = {
        "undivided model": (undivided.parameters, undivided.forward_flops),
        "of which on every rank of tp": (undivided.replicated_parameters, undivided.replicated_forward_flops),
        "of which in two stages": (undivided.copied_parameters, 0),
        "so on all ranks": (expected.parameters, expected.forward_flops),
        "sum over the ranks": (found.parameters, found.forward_flops),
    }
    headings = ["", "parameters", "forward FLOPs of a micro-batch"]
    table = rows_table(f"Sums over all {integer(layout.ranks)} ranks", headings)
    for label, numbers in rows.items():
        if any(numbers) or not label.startswith("of which in"):
            table.add_row(label, *map(integer, numbers))
    sentences = [
        "On all ranks: dp x (undivided + (tp - 1) x what every rank of tp has) parameters, and dp x fsdp times as many "
        "FLOPs as in the brackets."
    ]
    if undivided.copied_parameters:
        sentences.append(
            "The last stage has an embedding of its own for multi-token prediction, once more than the sum."
        )
    if layout.expert_replicas != layout.replicas:
        sentences.append(
            f"Copies of the {integer(undivided.expert_parameters)} parameters in routed experts: "
            f"{integer(layout.expert_replicas)} instead of dp, because ep borrows ranks of dp."
        )
    if layout.expert_imbalance != 1:
        sentences.append("The busiest rank stands for all, so the sum has more FLOPs.")
    table.caption = " ".join(sentences)
    return table
