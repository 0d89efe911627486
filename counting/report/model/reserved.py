"""The table of what the caching allocator reserves for a step, by the stream whose pool has it."""

from counting.report.format import integer
from counting.report.tables import Table, rows_table
from counting.step.memory import StepMemory


def reserved_tables(memory: StepMemory, *, of: str = "the training step") -> list[Table]:
    """A row for each stream, with the reserved bytes and what of them is free; no table where nothing is estimated."""
    parts = memory.reserved_parts
    if memory.reserved_bytes is None or parts is None:
        return []
    low, high = memory.reserved_bytes
    kind = "expandable segments" if parts.expandable_segments else f"segments at {parts.replays} orders of addresses"
    range_in_words = integer(low) if low == high else f"{integer(low)} to {integer(high)}"
    title = f"What torch's allocator reserves for {of} in bytes, an estimate: {range_in_words}; {kind}"
    table = rows_table(title, ("stream", "reserved", "whole segments", "fragments"))
    table.caption = (
        f"Of the most that is reserved, {integer(parts.allocated_bytes)} are allocated then. Whole segments are free; "
        f"fragments lie beside blocks in use. At most {integer(parts.peak_allocated_bytes)} are allocated at once, "
        "rounding and workspaces included."
    )
    for pool in parts.pools:
        table.add_row(pool.stream, *map(integer, (pool.reserved_bytes, pool.idle_bytes, pool.fragment_bytes)))
    table.add_section()
    table.add_row("all", *map(integer, (high, parts.idle_bytes, parts.fragment_bytes)))
    return [table]
