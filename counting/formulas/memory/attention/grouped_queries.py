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
from counting.formulas.memory.tape import Array, Tape
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
        if spec.query_key_norm:
            out = _query_key_norm(tape, spec, out, tokens, heads, kernels, division)
        return reordered(tape, out, copied=True) if after_norm else out

    def rotated(heads: int, *, by_channel: bool = False) -> Array:
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
        return rotate(tape, out, tokens * heads * spec.rotary.dim, interleaved=spec.rotary.interleaved)

    query, key = rotated(spec.num_attention_heads), rotated(spec.num_key_value_heads, by_channel=transposed)
    width = spec.num_key_value_heads * spec.head_dim
    value = projection(tape, x, tokens, width, division, bias=spec.qkv_bias)
    return query, key, reordered(tape, value, copied=by_head and by_head_differs(spec.num_key_value_heads, batch))


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
