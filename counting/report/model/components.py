"""Tables with a row for each component and a column for each distinct layer."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from counting.analysis import LayerAnalysis

if TYPE_CHECKING:
    from rich.table import Table


def component_table(title: str, layers: Iterable[LayerAnalysis], whole: str | None) -> "Table":
    """A table without rows: a column for each layer, then one titled `whole` and one for shares unless that is None."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", min_width=40)
    table.add_column("component", no_wrap=True)
    for layer in layers:
        table.add_column(f"{layer.kind} layer × {layer.count}", justify="right", no_wrap=True)
    if whole:
        table.add_column(whole, justify="right", no_wrap=True)
        table.add_column("share", justify="right", no_wrap=True)
    return table
