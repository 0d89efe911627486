"""Operations of rotary embedding.

The legend of dimension letters is in memory/layer.py.
"""

from counting.formulas.memory.operations import (
    add,
    every_other,
    join,
    scale,
    split,
    subtract,
)
from counting.formulas.memory.tape import Array, Tape


def rotate(tape: Tape, x: Array, rotated: int, *, interleaved: bool) -> Array:
    """Apply rotary embedding to the first `rotated` numbers of `x`: each half needs two products with cos or sin."""
    if rotated < x.numel:
        turned, rest = split(tape, x, rotated, x.numel - rotated)
        return join(tape, rotate(tape, turned, rotated, interleaved=interleaved), rest)
    if interleaved:
        first, second = every_other(tape, x), every_other(tape, x)
    else:
        first, second = split(tape, x, rotated // 2, rotated // 2)
    return join(
        tape,
        subtract(tape, scale(tape, first), scale(tape, second)),
        add(tape, scale(tape, second), scale(tape, first)),
    )
