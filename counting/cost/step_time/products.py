"""Matrix products: tiles and waves, grouped products, and operands that are quantised to FP8."""

from collections.abc import Iterable

from counting.work import Op


def with_fp8_products(ops: Iterable[Op]) -> tuple[Op, ...]:
    """`ops` whose linear products run in FP8, each behind the kernels that quantise its operands."""
    raise NotImplementedError
