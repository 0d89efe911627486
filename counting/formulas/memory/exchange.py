"""Expert parallelism: rows travel to the rank that has their expert, and back, by all-to-all.

A rank sends N = T K rows, sorted by expert, and receives M: as many with balanced routing, more on the busiest rank.
The number of rows of each expert is sent first. Received rows are sorted by expert for the grouped products (Lepikhin
et al. 2020, arXiv 2006.16668, §3.2). The gradient of an exchange is the exchange back.
"""

from collections.abc import Callable

from counting.formulas.memory.operations import OTHER, rows_of
from counting.formulas.memory.tape import INT, LONG, Array, Size, Tape

# Rows, their experts and the ends of the experts' rows -> the outputs of the experts.
Transform = Callable[[Array, Array, Array], Array]


def exchange(
    tape: Tape, transform: Transform, rows: Array, experts: int, own_experts: int, received: int, width: int
) -> Array:
    """Run `transform` on the ranks that have the experts, and return its output for each of `rows`.

    Of `experts` experts this rank has `own_experts`; it receives `received` rows of `width` numbers.
    """
    sent_rows, size = rows.numel, rows.size.width
    sent = _counts(tape, experts)
    # The number of rows from each rank for each of this rank's experts.
    (arrived,) = tape.born_of(OTHER, Size(experts, LONG))
    came = _travel(tape, rows, received * width)
    own = tape.new(own_experts, LONG)
    expert_of_own = tape.new(experts, LONG)
    del own
    experts_of_rows, order = _sorted(tape, received)
    ends = _ends(tape, own_experts)
    by_expert = rows_of(tape, came, order, received * width)
    del came, expert_of_own
    out = transform(by_expert, experts_of_rows, ends)
    del by_expert, experts_of_rows, ends
    back = _in_order_of_arrival(tape, out, order)
    del out, order
    returned = _travel(tape, back, sent_rows)
    del sent, arrived, size
    return returned


def _counts(tape: Tape, experts: int) -> Array:
    """The number of rows of each expert: differences of the ends of the experts' rows."""
    zero = tape.new(1, INT)
    with_zero = tape.new(experts + 1, INT)
    differences = tape.new(experts, INT)
    del zero, with_zero
    counts = tape.new(experts, LONG)
    del differences
    return counts


def _travel(tape: Tape, rows: Array, received: int) -> Array:
    """Send rows and receive others."""
    sent = rows.size
    (out,) = tape.born_of(OTHER, Size(received, sent.width))
    tape.record([out], [rows], [], lambda gradients: [tape.like(sent)])
    return out


def _sorted(tape: Tape, rows: int) -> tuple[Array, Array]:
    """The experts of the received rows, sorted, and the order of the rows by expert."""

    def unsorted() -> Array:
        indices = tape.new(rows, LONG)
        experts = tape.new(rows, LONG)
        del indices
        return experts

    by_sender = unsorted()
    experts, order = tape.born(Size(rows, LONG), Size(rows, LONG))
    del by_sender
    return experts, order


def _ends(tape: Tape, experts: int) -> Array:
    counts = tape.new(experts, LONG)
    sums = tape.new(experts, LONG)
    del counts
    ends = tape.new(experts, INT)
    del sums
    return ends


def _in_order_of_arrival(tape: Tape, rows: Array, order: Array) -> Array:
    """Write rows into a tensor of zeros, in place; backward gathers their gradients."""
    size = rows.size
    out = tape.like(size)
    tape.record([out], [rows], [order], lambda gradients: [tape.like(size)])
    return out
