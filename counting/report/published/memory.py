"""Tables of published memory beside what is predicted for the same settings."""

from collections.abc import Iterator, Sequence

from counting.published.memory import BYTES_PER_GIB, ExaminedMemory, MemoryFigure
from counting.report.format import decimal, signed_percent
from counting.report.published.grouped import grouped
from counting.report.tables import Notes, Part, rows_table

MEMORY_HEADINGS = ("stated", "predicted", "difference")


def published_memory_parts(rows: Sequence[ExaminedMemory]) -> Iterator[Part]:
    """The stated peaks of memory beside ours, and why the other rows are not run."""
    figures = rows_table("Stated peaks of memory, and ours, GiB", ("run, bytes", "GPU", *MEMORY_HEADINGS), names=2)
    for row in rows:
        if row.figures:
            figures.add_row(row.name, row.gpu, bold=True)
        for figure in row.figures:
            figures.add_row(f"  {figure.quantity}", "", *memory_cells(figure))
    yield figures
    yield Notes(
        (
            "Allocated: blocks of the caching allocator, with workspaces of kernels. Reserved: an estimate, least and "
            "most over orders of addresses; the difference is that of their middle. Nothing is fitted to the figures.",
            *(
                f"{names}: {note}."
                for names, note in grouped(((row.name, row.note) for row in rows if row.figures), ";")
            ),
            *(f"Not run: {names}: {why}." for names, why in grouped(((row.name, row.not_run) for row in rows), ";")),
            *(f"{names}: {source}." for names, source in grouped(((row.name, row.source) for row in rows), ";")),
        )
    )


def memory_cells(figure: MemoryFigure) -> tuple[str, str, str]:
    """What is stated, what is predicted, and the difference."""
    low, high = (f"{bytes_ / BYTES_PER_GIB:.2f}" for bytes_ in (figure.low_bytes, figure.high_bytes))
    return (
        decimal(figure.stated_gib, 2),
        low if low == high else f"{low}-{high}",
        signed_percent(figure.relative_difference),
    )
