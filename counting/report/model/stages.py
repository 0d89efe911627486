"""The tables of a pipeline: the stages of each of its ranks and what they hold, and the layers of each stage."""

from counting.ranks.result import RankAnalysis, worst_by_place
from counting.report.format import integer
from counting.report.layout import schedule_in_words
from counting.report.tables import Table, rows_table
from torch_models.layout import Layout


def places_table(layout: Layout, classes: tuple[RankAnalysis, ...]) -> Table:
    """A row for each rank of the pipeline: its stages, its passes in flight, its states, and its largest peak."""
    title = f"The pipeline, bytes a rank: {integer(layout.pp)} ranks, {schedule_in_words(layout)}"
    headings = ["stages", "rank of pp", "ranks", "in flight", "parameters", "states", "peak"]
    table = rows_table(title, headings, names=1)
    worst = max(each.memory.peak_bytes for each in classes)
    for each in worst_by_place(classes):
        count = sum(other.count for other in classes if other.stage == each.stage)
        memory = each.memory
        numbers = (each.stage, count, each.in_flight, each.parameters, memory.states.total, memory.peak_bytes)
        table.add_row(", ".join(map(str, each.stages)), *map(integer, numbers), bold=memory.peak_bytes == worst)
    table.caption = (
        "In flight: passes forward that wait for their backward pass, at most, of all stages of the rank. Bold: the "
        "largest peak."
    )
    return table


def stages_table(layout: Layout) -> Table:
    """A row for each stage of the pipeline: its rank, its layers, and what else it has."""
    ranks = {stage: rank for rank in range(layout.pp) for stage in layout.stages_of_rank(rank)}
    counts = layout.stage_layers or ()
    table = rows_table(
        "The stages of the pipeline", ["stage", "also has", "rank of pp", "layers", "first", "last"], names=2
    )
    first = 0
    for stage, count in enumerate(counts):
        has = ["embedding"] * (stage == 0) + ["norm, head, loss"] * (stage == len(counts) - 1)
        numbers = (ranks[stage], count, first, first + count - 1)
        table.add_row(integer(stage), ", ".join(has), *map(integer, numbers))
        first += count
    table.caption = "Layers are counted from 0. Multi-token prediction is in the last stage."
    return table
