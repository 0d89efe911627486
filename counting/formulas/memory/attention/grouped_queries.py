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
    share a key has already done so. The gradients of eager products and of ring attention order the values by head.
    """
    tokens = batch.tokens
    by_channel = kernels == "eager" and min(batch) > 1 and spec.num_attention_heads == spec.num_key_value_heads

    def projected(heads: int, *, copied: bool) -> Array:
        width = heads * spec.head_dim
        out = projection(tape, x, tokens, width, division, bias=spec.qkv_bias)
        out = reordered(tape, out, copied=True) if copied else out
        if spec.query_key_norm:
            out = _query_key_norm(tape, spec, out, tokens, heads, kernels, division)
        return out

    def rotated(heads: int, *, copied: bool = False) -> Array:
        out = projected(heads, copied=copied)
        return rotate(tape, out, tokens * heads * spec.rotary.dim, interleaved=spec.rotary.interleaved)

    key_heads = spec.num_key_value_heads
    query = rotated(spec.num_attention_heads)
    copied = (kernels == "eager" or division.cp > 1) and by_head_differs(key_heads, batch)
    if spec.keys_as_values:  # the sum of both gradients has the order of the values, whose gradient comes first
        shared = projection(tape, x, tokens, key_heads * spec.head_dim, division, bias=spec.qkv_bias)
        value = reordered(tape, shared, copied=copied)
        key = _query_key_norm(tape, spec, value, tokens, key_heads, kernels, division)
        key = rotate(tape, key, tokens * key_heads * spec.rotary.dim, interleaved=spec.rotary.interleaved)
    else:
        key = rotated(key_heads, copied=by_channel)
        value = projection(tape, x, tokens, key_heads * spec.head_dim, division, bias=spec.qkv_bias)
        value = reordered(tape, value, copied=copied)
    if spec.value_norm:
        value = norm(tape, value, tokens * key_heads, kernels, weighted=False)
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
        return norm(tape, x, tokens * heads, kernels, division=division)
    if division.tp > 1:
        return divided_norm(tape, x, tokens, division)
    return norm(tape, x, tokens, kernels)
