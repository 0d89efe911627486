"""Tables of published memory beside what is predicted for the same settings."""

from collections.abc import Sequence

from counting.published.memory import BYTES_PER_GIB, ExaminedMemory, MemoryFigure
from counting.report.published.grouped import grouped
from counting.report.tables import print_notes, print_tables, rows_table

MEMORY_HEADINGS = ("stated", "predicted", "difference")


def print_published_memory(rows: Sequence[ExaminedMemory]) -> None:
    """Print the stated peaks of memory beside ours, and why the other rows are not run."""
    figures = rows_table("Stated peaks of memory, and ours, GiB", ("run, bytes", "GPU", *MEMORY_HEADINGS), names=2)
    for row in rows:
        if row.figures:
            figures.add_row(row.name, row.gpu, style="bold")
        for figure in row.figures:
            figures.add_row(f"  {figure.quantity}", "", *memory_cells(figure))
    print_tables(figures)
    print_notes(
        [
            "Allocated: blocks of the caching allocator, with workspaces of kernels. Reserved: an estimate, least and "
            "most over orders of addresses; the difference is that of their middle. Nothing is fitted to the figures.",
            *(
                f"{names}: {note}."
                for names, note in grouped(((row.name, row.note) for row in rows if row.figures), ";")
            ),
            *(f"Not run: {names}: {why}." for names, why in grouped(((row.name, row.not_run) for row in rows), ";")),
            *(f"{names}: {source}." for names, source in grouped(((row.name, row.source) for row in rows), ";")),
        ]
    )


def memory_cells(figure: MemoryFigure) -> tuple[str, str, str]:
    """What is stated, what is predicted, and the difference."""
    low, high = (f"{bytes_ / BYTES_PER_GIB:.2f}" for bytes_ in (figure.low_bytes, figure.high_bytes))
    return (
        f"{figure.stated_gib:.2f}",
        low if low == high else f"{low}-{high}",
        f"{100 * figure.relative_difference:+.2f} %",
    )
