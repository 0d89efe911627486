"""The ops of a step as compiled layers run them."""

from collections.abc import Sequence

from counting.measurements.work.records import RawStretch, summarise
from counting.work import Op


def summarise_compiled(stretches: Sequence[RawStretch], layers: Sequence[int | None]) -> list[tuple[Op, ...]]:
    """Placeholder of the owner of compiled execution: every op by itself.

    `stretches` are those of a step in the order of execution, each with the number of its decoder layer, or None.
    """
    assert len(stretches) == len(layers)
    return [summarise(stretch) for stretch in stretches]
