"""A learned table of positions, which is added to the embedded tokens.

The operations are those of `PositionTable` (torch_models/modules/decoder.py). Under tensor parallelism each rank adds
an equal share of the table to its term of the sum. Under context parallelism a rank has two of 2 c equal parts of the
rows (torch_models/parallel/context.py, `own_positions`).
"""

from counting.formulas.local.shapes import Division
from counting.formulas.memory.operations import first, join
from counting.formulas.memory.parameters import added_bias
from counting.formulas.memory.tape import Array, Gradients, InputGradients, Leaf, Size, Storage, Tape, TooLarge
from counting.setup import MicroBatch


def with_positions(tape: Tape, x: Array, table: Leaf, width: int, batch: MicroBatch, division: Division) -> Array:
    """Add a row of `table`, of `width` numbers, to each embedded token of `x`.

    The gradients of a row are summed over the sequences; that of the rows becomes one of the whole table.
    """
    rows = _rows(tape, table, width, batch, division)
    of_rows = rows.size
    out = tape.like(x.size)

    def derive(gradients: Gradients) -> InputGradients:
        return [first(gradients).again(), TooLarge(first(gradients).again(), of_rows)]

    tape.record([out], [x, rows], [], derive)
    return out


def _rows(tape: Tape, table: Leaf, width: int, batch: MicroBatch, division: Division) -> Array:
    """The rows of a sequence's positions, of this rank's under cp."""
    shared = added_bias(tape, table, division)
    whole, of_sequence = shared.size, Size(batch.length * division.cp * width, shared.size.width)
    # The memory of a weight is counted elsewhere.
    rows = Array(of_sequence, Storage(tape, 0)) if isinstance(shared, Leaf) else shared.view(of_sequence.numel)
    tape.record([rows], [shared], [], lambda gradients: [tape.like(whole)])
    return rows if division.cp == 1 else _own_rows(tape, rows, division.cp)


def _own_rows(tape: Tape, rows: Array, ranks: int) -> Array:
    """Two of 2 c equal parts, joined; backward joins their gradients with zeros for all other parts."""
    whole, part = rows.size, Size(rows.numel // (2 * ranks), rows.size.width)

    def derive(gradients: Gradients) -> InputGradients:
        zeros = [tape.like(part) for _ in range(2 * ranks - 2)]
        out = tape.like(whole)
        del zeros
        return [out]

    parts = [rows.view(part.numel) for _ in range(2)]
    tape.record(parts, [rows], [], derive)
    return join(tape, *parts)
