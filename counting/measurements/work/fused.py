"""The ops of a stretch as compiled layers run them."""

from collections.abc import Sequence

from counting.measurements.work.records import RawStretch, summarise
from counting.work import Op


def fused_ops(stretches: Sequence[RawStretch], layers: Sequence[int | None]) -> list[tuple[Op, ...]]:
    """Placeholder: every op by itself."""
    return [() if layer is None else summarise(stretch) for stretch, layer in zip(stretches, layers, strict=True)]
