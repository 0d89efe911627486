"""Operations of the projections of grouped-query attention.

The legend of dimension letters is in memory/layer.py.
"""

from counting.formulas.local.shapes import Division
from counting.formulas.memory.attention.core import by_head_differs
from counting.formulas.memory.attention.rotation import rotate
from counting.formulas.memory.blocks import divided_norm, norm, projection
from counting.formulas.memory.operations import (
    reordered,
)
from counting.formulas.memory.tape import SINGLE, Array, Tape
from counting.setup import MicroBatch
from torch_models.spec import (
    GroupedQueryAttentionSpec,
    Kernels,
)


def grouped_projections(
    tape: Tape,
    spec: GroupedQueryAttentionSpec,
    x: Array,
    batch: MicroBatch,
    kernels: Kernels,
    division: Division,
) -> tuple[Array, Array, Array]:
    """Query, key and value.

    The gradient of an eager product orders the keys by channel, then position, and the steps back to the projection
    keep this order. Its rows are tokens, so with several sequences they are copied; the sum over the query heads that
    share a key has already done so. The gradients of eager products and of ring attention order the values by head,
    and without rotation queries and shared keys too.
    """
    tokens = batch.tokens
    by_head = kernels == "eager" or division.cp > 1
    transposed = kernels == "eager" and spec.num_attention_heads == spec.num_key_value_heads

    def projected(heads: int, *, before_norm: bool, after_norm: bool = False) -> Array:
        width = heads * spec.head_dim
        out = projection(tape, x, tokens, width, division, bias=spec.qkv_bias)
        out = reordered(tape, out, copied=True) if before_norm else out
        if spec.query_key_norm in ("head", "width"):
            out = _query_key_norm(tape, spec, out, tokens, heads, kernels, division)
        return reordered(tape, out, copied=True) if after_norm else out

    def rotated(heads: int, *, by_channel: bool) -> Array:
        """`by_channel` says that the gradient comes in that order."""
        copied = by_channel and min(batch) > 1
        if spec.rotary is None:
            sorted_by_head = by_head and not by_channel and by_head_differs(heads, batch)
            over_width = spec.query_key_norm == "width"  # joins the heads of a token before the norm's gradient
            return projected(
                heads,
                before_norm=copied or (sorted_by_head and not over_width),
                after_norm=sorted_by_head and over_width,
            )
        out = projected(heads, before_norm=copied)
        out = rotate(tape, out, tokens * heads * spec.rotary.dim, interleaved=spec.rotary.interleaved)
        return norm(tape, out, tokens * heads, kernels, has_weight=False) if spec.query_key_norm == "l2" else out

    key_heads = spec.num_key_value_heads
    query = _heated(tape, spec, rotated(spec.num_attention_heads, by_channel=False), batch)
    copied = by_head and by_head_differs(key_heads, batch)
    if spec.keys_as_values:
        assert spec.rotary is not None
        shared = projection(tape, x, tokens, key_heads * spec.head_dim, division, bias=spec.qkv_bias)
        key = reordered(tape, shared, copied=False)
        key = _query_key_norm(tape, spec, key, tokens, key_heads, kernels, division)
        key = rotate(tape, key, tokens * key_heads * spec.rotary.dim, interleaved=spec.rotary.interleaved)
        value = reordered(tape, shared, copied=copied)
    else:
        key = rotated(key_heads, by_channel=transposed)
        value = projection(tape, x, tokens, key_heads * spec.head_dim, division, bias=spec.qkv_bias)
        value = reordered(tape, value, copied=copied)
    if spec.value_norm:
        value = norm(tape, value, tokens * key_heads, kernels, has_weight=False)
    return query, key, value


def _query_key_norm(
    tape: Tape,
    spec: GroupedQueryAttentionSpec,
    x: Array,
    tokens: int,
    heads: int,
    kernels: Kernels,
    division: Division,
) -> Array:
    if spec.query_key_norm == "head":
        return norm(tape, x, tokens * heads, kernels, unit_offset=spec.norm_unit_offset, division=division)
    if division.tp > 1:
        return divided_norm(tape, x, tokens, division)
    return norm(tape, x, tokens, kernels)


def _heated(tape: Tape, spec: GroupedQueryAttentionSpec, query: Array, batch: MicroBatch) -> Array:
    """The queries times a factor of each position, which is kept; the queries before it are not."""
    if spec.temperature is None:
        return query
    size = query.size
    factors = _factors_of_positions(tape, batch.length, size.width)
    out = tape.like(size)
    tape.record([out], [query], [factors], lambda gradients: [tape.like(size)])
    return out


def _factors_of_positions(tape: Tape, length: int, width: int) -> Array:
    """Positions, which stay; divided, rounded down, their logarithm, scaled, one added: each a new tensor."""
    positions = tape.new(length, SINGLE)
    factors = positions.again()
    for _ in range(5):
        factors = tape.new(length, SINGLE)
    return factors if width == SINGLE else tape.new(length, width)
