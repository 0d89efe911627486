"""Bytes of what several ops touch, and ops that are added up."""

from counting.measurements.work import RawOp, RawStretch, Touch, summarise, touched_bytes
from counting.measurements.work.records import total
from counting.work import Op

HALF, OTHER_HALF, WHOLE = Touch(1, (0,), 8, 16), Touch(1, (8,), 8, 16), Touch(1, (), 16, 16)


def test_distinct_numbers_are_touched_once() -> None:
    """A region twice is one; a storage of 16 bytes has no more, whatever overlaps; other storages are added."""
    assert touched_bytes([]) == 0
    assert touched_bytes([HALF, HALF]) == 8
    assert touched_bytes([HALF, OTHER_HALF]) == 16
    assert touched_bytes([HALF, WHOLE, OTHER_HALF]) == 16
    assert touched_bytes([HALF, Touch(2, (0,), 4, 4)]) == 12


def test_equal_ops_are_one_with_calls() -> None:
    """In the order of the first; collectives are no ops."""
    copy, add = RawOp("memory", "copy_", (HALF,), (WHOLE,)), RawOp("memory", "add", (HALF, OTHER_HALF), (WHOLE,))
    other_copy = RawOp("memory", "copy_", (OTHER_HALF,), (Touch(3, (), 16, 16),))
    gather = RawOp("collective", "all_gather_into_tensor", (HALF,), (WHOLE,))
    assert summarise(RawStretch([copy, gather, add, other_copy], {1, 3})) == (
        Op(kind="memory", name="copy_", calls=2, bytes_read=8, bytes_written=16),
        Op(kind="memory", name="add", bytes_read=16, bytes_written=16),
    )


def test_calls_are_multiplied_and_added() -> None:
    one, three = Op(kind="memory", name="add", bytes_read=8), Op(kind="memory", name="add", bytes_read=8, calls=3)
    other = Op(kind="memory", name="mul", bytes_read=8)
    assert total([one, other, three], 2) == (
        Op(kind="memory", name="add", bytes_read=8, calls=8),
        Op(kind="memory", name="mul", bytes_read=8, calls=2),
    )
