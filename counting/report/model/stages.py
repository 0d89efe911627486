"""The table of a pipeline: which stages each of its ranks has, and what they hold."""

from typing import TYPE_CHECKING

from counting.ranks.result import RankAnalysis, worst_by_place
from counting.report.format import integer
from counting.report.layout import schedule_in_words, stages_in_words
from torch_models.layout import Layout

if TYPE_CHECKING:
    from rich.table import Table


def stages_table(layout: Layout, classes: tuple[RankAnalysis, ...]) -> "Table":
    """A row for each rank of the pipeline: its stages, its passes in flight, its states, and its largest peak."""
    from rich.table import Table

    title = f"The pipeline, bytes a rank: {integer(layout.pp)} ranks, {schedule_in_words(layout)}"
    table = Table(title=title, title_justify="left")
    table.add_column("rank of pp", justify="right", no_wrap=True)
    table.add_column("stages", min_width=20)
    for heading in ("ranks", "in flight", "parameters", "states", "peak"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("peak in")
    worst = max(each.memory.peak_bytes for each in classes)
    for each in worst_by_place(classes):
        count = sum(other.count for other in classes if other.stage == each.stage)
        memory = each.memory
        numbers = (count, each.in_flight, each.parameters, memory.states.total, memory.peak_bytes)
        table.add_row(
            integer(each.stage),
            stages_in_words(layout, each.stages),
            *map(integer, numbers),
            memory.peak_phase,
            style="bold" if memory.peak_bytes == worst else None,
        )
    table.caption = (
        "In flight: passes forward that wait for their backward pass, at most, of all stages of the rank. The first "
        "stage has the embedding; the last one final norm, head, loss, and multi-token prediction if it is trained."
    )
    table.caption_justify = "left"
    return table
