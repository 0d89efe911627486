"""The table of what the allocator reserves: its rows sum to what is reserved."""

import pytest

from counting import Setup, analyze
from counting.report.model.reserved import reserved_tables
from counting.report.tables import Table
from tests.shrunken import LLAMA
from torch_models.layout import Layout


def numbers(table: Table) -> list[list[int]]:
    return [[int(cell.replace(",", "")) for cell in row.cells[1:]] for row in table.rows]


@pytest.mark.parametrize("expandable", [False, True])
def test_rows_sum_to_what_is_reserved(expandable: bool) -> None:
    setup = Setup(sequence_length=64, expandable_segments=expandable)
    analysis = analyze(LLAMA, setup, layout=Layout(num_gpus=4, fsdp=4), reserved=True)
    assert analysis.rank_classes is not None
    memory = analysis.rank_classes[0].memory
    assert memory.reserved_bytes is not None
    assert memory.reserved_parts is not None
    (table,) = reserved_tables(memory)
    *streams, total = numbers(table)
    assert [sum(column) for column in zip(*streams, strict=True)] == total
    reserved, whole, fragments = total
    assert reserved == memory.reserved_bytes[1] == memory.reserved_parts.allocated_bytes + whole + fragments
    assert len(streams) > 1


def test_no_table_where_nothing_is_estimated() -> None:
    analysis = analyze(LLAMA, Setup(sequence_length=64))
    assert analysis.memory is not None
    assert reserved_tables(analysis.memory) == []
