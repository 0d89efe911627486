"""Operations of the core of attention: one fused kernel, or scores and probabilities as tensors.

The legend of dimension letters is in memory/layer.py.
"""

from counting.formulas.local.shapes import Division
from counting.formulas.memory.attention.ring import Factors, FusedKernel, ring_attention
from counting.formulas.memory.operations import (
    OTHER,
    Operand,
    batched_product,
    cast,
    copy,
    join,
    reordered,
    repeat,
    repeat_view,
    scale,
    softmax,
    unary,
    without_last,
)
from counting.formulas.memory.tape import BOOL, LONG, Array, Gradients, InputGradients, Tape
from counting.setup import MicroBatch
from torch_models.spec import (
    AttentionSpec,
    GroupedQueryAttentionSpec,
    MultiHeadLatentAttentionSpec,
)

FLASH_RANDOM_STATE = 24  # bytes of seed and offset of dropout, which the kernel returns even without dropout
EFFICIENT_RANDOM_STATE = 16
EFFICIENT_ROW_BLOCK = 32  # the kernel rounds its log-sum-exp rows up to a multiple of this


def by_head_differs(heads: int, batch: MicroBatch) -> bool:
    """Whether order by head, then token, differs from order by token, then head, within a sequence."""
    return heads > 1 and batch.length > 1


def fused_core(
    tape: Tape,
    spec: AttentionSpec,
    query: Array,
    key: Array,
    value: Array,
    sinks: Operand | None,
    batch: MicroBatch,
    division: Division,
    chosen: Array | None = None,
) -> Array:
    """One kernel: it keeps the output and the log-sum-exp of each row, and recomputes the scores in backward."""
    kernel = _fused_kernel(spec, keeps_rows=tape.grad_enabled)
    if division.cp > 1:
        return ring_attention(tape, kernel, _factors(spec, query, key, value), query, key, value, batch, division)
    out, logsumexps, states = tape.born_of(OTHER, *kernel.outputs(batch, query.size.width))
    sizes = [query.size, key.size, value.size, *([sinks.size] if sinks else [])]

    def derive(gradients: Gradients) -> InputGradients:
        return [*tape.born(*sizes), *([] if sinks else [None])]

    kept = [query, key, value, out, logsumexps, states, *([] if chosen is None else [chosen])]
    tape.record([out], [query, key, value, sinks], kept, derive)
    return out


def _fused_kernel(spec: AttentionSpec, *, keeps_rows: bool) -> FusedKernel:
    """Flash attention, torch's memory-efficient kernel where values are not as wide as keys, or our own kernel."""
    heads = spec.num_attention_heads
    if isinstance(spec, MultiHeadLatentAttentionSpec):
        if spec.indexer is not None:
            return FusedKernel(heads, spec.v_head_dim, 1, 0)
        if spec.qk_head_dim == spec.v_head_dim:
            return FusedKernel(heads, spec.v_head_dim, 1, FLASH_RANDOM_STATE)
        row_block = EFFICIENT_ROW_BLOCK if keeps_rows else 0
        return FusedKernel(heads, spec.v_head_dim, row_block, EFFICIENT_RANDOM_STATE)
    return FusedKernel(heads, spec.head_dim, 1, 0 if spec.needs_own_kernel else FLASH_RANDOM_STATE)


def _factors(spec: AttentionSpec, query: Array, key: Array, value: Array) -> Factors:
    """What ring attention has to know of its inputs; values from a latent are a part of a tensor with keys."""
    sizes = query.size, key.size, value.size
    if isinstance(spec, GroupedQueryAttentionSpec):
        return Factors(*sizes, by_token=spec.num_key_value_heads > 1, value_has_gaps=False)
    return Factors(*sizes, by_token=spec.num_attention_heads > 1, value_has_gaps=True)


def eager_core(
    tape: Tape,
    spec: AttentionSpec,
    query: Array,
    key: Array,
    value: Array,
    sinks: Operand | None,
    batch: MicroBatch,
    chosen: Array | None = None,
) -> Array:
    """Scores and probabilities as S x S tensors for every sequence and head, and one S x S mask for all of them.

    With `chosen` keys for each query there is a mask for each sequence.

    A batched product takes all heads of all sequences in one dimension. Factors that are ordered by token, not by head,
    are copied for that if there are several sequences, and so is the gradient of the result; repeated keys and values
    are ordered by head already.
    """
    heads, options = spec.num_attention_heads, spec if isinstance(spec, GroupedQueryAttentionSpec) else None
    per_group = heads // options.num_key_value_heads if options else 1
    copied = batch.sequences > 1 and by_head_differs(heads, batch)
    if per_group > 1:
        key, value = repeat(tape, key, per_group), repeat(tape, value, per_group)

    def by_head(factor: Array, *, ordered: bool = False) -> Array:
        return copy(tape, factor) if copied and not ordered else factor

    square = batch.length * batch.length
    squares = batch.sequences * heads * square
    scores = scale(tape, batched_product(tape, by_head(query), by_head(key, ordered=per_group > 1), squares))
    if options and options.logit_softcap:
        scores = scale(tape, unary(tape, scale(tape, scores), keeps_output=True))
    hidden = _not_chosen(tape, batch, chosen) if chosen else _hidden_positions(tape, batch.length, options)
    scores = _masked(tape, scores, hidden)
    del hidden
    if sinks is not None:
        columns = repeat_view(tape, sinks, batch.tokens)
        probabilities = without_last(tape, softmax(tape, join(tape, scores, columns)), squares)
    else:
        probabilities = softmax(tape, scores)
    rounded = cast(tape, probabilities, query.size.width)
    out = batched_product(tape, rounded, by_head(value, ordered=per_group > 1), value.numel)
    return reordered(tape, out, copied=True) if copied else out


def _masked(tape: Tape, scores: Array, hidden: Array) -> Array:
    out = tape.like(scores.size)
    size = scores.size
    tape.record([out], [scores], [hidden], lambda gradients: [tape.like(size)])
    return out


def _not_chosen(tape: Tape, batch: MicroBatch, chosen: Array) -> Array:
    """The mask of each sequence: positions after the token, and keys that are not chosen."""
    after = _hidden_positions(tape, batch.length, None)
    squares = batch.tokens * batch.length

    def others() -> Array:
        ones = tape.new(squares, BOOL)
        indices = tape.new(chosen.numel, LONG)
        out = tape.new(squares, BOOL)
        del ones, indices
        return out

    other = others()
    out = tape.new(squares, BOOL)
    del after, other
    return out


def _hidden_positions(tape: Tape, length: int, spec: GroupedQueryAttentionSpec | None) -> Array:
    """The mask of the positions after the token and, if the layer has one, of those before its window or its chunk."""
    square = length * length

    def triangle() -> Array:
        ones = tape.new(square, BOOL)
        out = tape.new(square, BOOL)
        del ones
        return out

    def chunk_of_each() -> Array:
        positions = tape.new(length, LONG)
        return tape.new(length, LONG) if positions else positions

    hidden = triangle()
    if spec is None or not (spec.window or spec.chunk):
        return hidden
    chunks = chunk_of_each() if spec.chunk else None
    before = triangle() if chunks is None else tape.new(square, BOOL)
    return tape.new(square, BOOL) if before else hidden
