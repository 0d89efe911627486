"""Tables with a row for each component and a column for each distinct layer."""

from collections.abc import Iterable

from counting.analysis import LayerAnalysis
from counting.report.tables import Table


def component_table(title: str, layers: Iterable[LayerAnalysis], whole: str | None) -> Table:
    """A table without rows: a column for each layer, then one titled `whole` and one for shares unless that is None."""
    table = Table(title=title, narrowest=40)
    table.add_column("component", is_number=False)
    for layer in layers:
        table.add_column(f"{layer.kind} layer × {layer.count}")
    if whole:
        table.add_column(whole)
        table.add_column("share")
    return table
