"""Operations of attention, from its spec alone. The legend of dimension letters is in layer.py."""

from counting.formulas.local.shapes import UNDIVIDED, Division
from counting.formulas.memory.blocks import divided_norm, norm, projection, sum_projection
from counting.formulas.memory.operations import (
    OTHER,
    Operand,
    add,
    batched_product,
    cast,
    copy,
    every_other,
    join,
    linear,
    reordered,
    repeat,
    repeat_view,
    scale,
    softmax,
    split,
    subtract,
    unary,
    without_last,
)
from counting.formulas.memory.parameters import own_parameter, summed_parameter
from counting.formulas.memory.ring import Factors, FusedKernel, ring_attention
from counting.formulas.memory.tape import BOOL, Array, Gradients, InputGradients, Tape
from counting.setup import MicroBatch
from torch_models.spec import (
    AttentionSpec,
    GroupedQueryAttentionSpec,
    Kernels,
    MultiHeadLatentAttentionSpec,
    Recompute,
)

FLASH_RANDOM_STATE = 24  # bytes of seed and offset of dropout, which the kernel returns even without dropout
EFFICIENT_RANDOM_STATE = 16
EFFICIENT_ROW_BLOCK = 32  # the kernel rounds its log-sum-exp rows up to a multiple of this


def attention(
    tape: Tape,
    spec: AttentionSpec,
    x: Array,
    batch: MicroBatch,
    kernels: Kernels,
    recompute: Recompute,
    division: Division = UNDIVIDED,
) -> Array:
    """Run attention on the normed input; return its output, before the residual sum.

    With a `division` `spec` is the part of this rank, and the output is its term of the sum over ranks.
    """
    sinks: Operand | None = None
    if isinstance(spec, GroupedQueryAttentionSpec):
        if spec.sinks:
            sinks = own_parameter(tape, tape.parameter(spec.num_attention_heads, x.size.width), division)
        query, key, value = _grouped_projections(tape, spec, x, batch, kernels, division)
        bias = spec.output_bias
    else:
        query, key, value = _latent_projections(tape, spec, x, batch.tokens, kernels, division)
        bias = spec.bias

    def core(query: Array, key: Array, value: Array) -> Array:
        if kernels == "eager":
            return _eager_core(tape, spec, query, key, value, sinks, batch)
        return _fused_core(tape, spec, query, key, value, sinks, batch, division)

    attended = tape.checkpoint(core, query, key, value) if recompute == "selective" else core(query, key, value)
    by_head = kernels == "eager" or division.halves_queries
    flattened = None if by_head and _by_head(spec.num_attention_heads, batch) else attended
    if flattened is None:  # the core's output is ordered by head; the projection needs it ordered by token
        flattened = copy(tape, attended)
    width = spec.hidden_size
    return sum_projection(tape, flattened, batch.tokens, width, division, bias=bias)


def _by_head(heads: int, batch: MicroBatch) -> bool:
    """Whether order by head, then token, differs from order by token, then head, within a sequence."""
    return heads > 1 and batch.length > 1


# --- Projections -----------------------------------------------------------------------------------------------


def _rotate(tape: Tape, x: Array, rotated: int, *, interleaved: bool) -> Array:
    """Apply rotary embedding to the first `rotated` numbers of `x`: each half needs two products with cos or sin."""
    if rotated < x.numel:
        turned, rest = split(tape, x, rotated, x.numel - rotated)
        return join(tape, _rotate(tape, turned, rotated, interleaved=interleaved), rest)
    if interleaved:
        first, second = every_other(tape, x), every_other(tape, x)
    else:
        first, second = split(tape, x, rotated // 2, rotated // 2)
    return join(
        tape,
        subtract(tape, scale(tape, first), scale(tape, second)),
        add(tape, scale(tape, second), scale(tape, first)),
    )


def _grouped_projections(
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
        return _rotate(tape, out, tokens * heads * spec.rotary.dim, interleaved=spec.rotary.interleaved)

    query, key = rotated(spec.num_attention_heads), rotated(spec.num_key_value_heads, copied=by_channel)
    width = spec.num_key_value_heads * spec.head_dim
    value = projection(tape, x, tokens, width, division, bias=spec.qkv_bias)
    copied = (kernels == "eager" or division.cp > 1) and _by_head(spec.num_key_value_heads, batch)
    return query, key, reordered(tape, value, copied=copied)


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


def _latent_projections(
    tape: Tape, spec: MultiHeadLatentAttentionSpec, x: Array, tokens: int, kernels: Kernels, division: Division
) -> tuple[Array, Array, Array]:
    """Query, key and value; the value is a view of the expanded latent."""
    query = _latent_query(tape, spec, x, tokens, kernels, division)
    heads, rope = spec.num_attention_heads, spec.qk_rope_head_dim
    both = _to_latent(tape, spec, x, tokens, spec.kv_lora_rank + rope, division)
    latent, shared = split(tape, both, tokens * spec.kv_lora_rank, tokens * rope)
    width = heads * (spec.qk_nope_head_dim + spec.v_head_dim)
    normed = norm(tape, latent, tokens, kernels, gaps=tokens > 1, division=division)
    expanded = projection(tape, normed, tokens, width, division)
    del normed
    own, value = split(tape, expanded, tokens * heads * spec.qk_nope_head_dim, tokens * heads * spec.v_head_dim)
    rotated = _rotate(tape, shared, tokens * rope, interleaved=spec.rotary.interleaved)
    return query, join(tape, own, repeat_view(tape, rotated, heads)), value


def _to_latent(
    tape: Tape, spec: MultiHeadLatentAttentionSpec, x: Array, tokens: int, width: int, division: Division
) -> Array:
    """Project to a latent, which each rank does for all heads."""
    weight = summed_parameter(tape, tape.parameter(spec.hidden_size * width, x.size.width), division)
    bias = summed_parameter(tape, tape.parameter(width, x.size.width), division) if spec.bias else None
    return linear(tape, x, tokens, width, weight=weight, bias=bias)


def _latent_query(
    tape: Tape, spec: MultiHeadLatentAttentionSpec, x: Array, tokens: int, kernels: Kernels, division: Division
) -> Array:
    heads, rope = spec.num_attention_heads, spec.qk_rope_head_dim
    width = heads * (spec.qk_nope_head_dim + rope)
    if spec.q_lora_rank is None:
        query = projection(tape, x, tokens, width, division)
    else:
        latent = norm(
            tape, _to_latent(tape, spec, x, tokens, spec.q_lora_rank, division), tokens, kernels, division=division
        )
        query = projection(tape, latent, tokens, width, division)
        del latent
    own, turned = split(tape, query, tokens * heads * spec.qk_nope_head_dim, tokens * heads * rope)
    return join(tape, own, _rotate(tape, turned, tokens * heads * rope, interleaved=spec.rotary.interleaved))


# --- The core --------------------------------------------------------------------------------------------------


def _fused_core(
    tape: Tape,
    spec: AttentionSpec,
    query: Array,
    key: Array,
    value: Array,
    sinks: Operand | None,
    batch: MicroBatch,
    division: Division,
) -> Array:
    """One kernel: it keeps the output and the log-sum-exp of each row, and recomputes the scores in backward."""
    kernel = _fused_kernel(spec, keeps_rows=tape.grad_enabled)
    if division.cp > 1:
        return ring_attention(tape, kernel, _factors(spec, query, key, value), query, key, value, batch, division)
    out, logsumexps, states = tape.born_of(OTHER, *kernel.outputs(batch, query.size.width))
    sizes = [query.size, key.size, value.size, *([sinks.size] if sinks else [])]

    def derive(gradients: Gradients) -> InputGradients:
        return [*tape.born(*sizes), *([] if sinks else [None])]

    tape.record([out], [query, key, value, sinks], [query, key, value, out, logsumexps, states], derive)
    return out


def _fused_kernel(spec: AttentionSpec, *, keeps_rows: bool) -> FusedKernel:
    """Flash attention, torch's memory-efficient kernel where values are not as wide as keys, or our own kernel."""
    heads = spec.num_attention_heads
    if isinstance(spec, MultiHeadLatentAttentionSpec):
        if spec.qk_head_dim == spec.v_head_dim:
            return FusedKernel(heads, spec.v_head_dim, 1, FLASH_RANDOM_STATE)
        row_block = EFFICIENT_ROW_BLOCK if keeps_rows else 0
        return FusedKernel(heads, spec.v_head_dim, row_block, EFFICIENT_RANDOM_STATE)
    ours = spec.window or spec.logit_softcap or spec.sinks
    return FusedKernel(heads, spec.head_dim, 1, 0 if ours else FLASH_RANDOM_STATE)


def _factors(spec: AttentionSpec, query: Array, key: Array, value: Array) -> Factors:
    """What ring attention has to know of its inputs; values from a latent are a part of a tensor with keys."""
    sizes = query.size, key.size, value.size
    if isinstance(spec, GroupedQueryAttentionSpec):
        return Factors(*sizes, by_token=spec.num_key_value_heads > 1, value_has_gaps=False)
    return Factors(*sizes, by_token=spec.num_attention_heads > 1, value_has_gaps=True)


def _eager_core(
    tape: Tape,
    spec: AttentionSpec,
    query: Array,
    key: Array,
    value: Array,
    sinks: Operand | None,
    batch: MicroBatch,
) -> Array:
    """Scores and probabilities as S x S tensors for every sequence and head, and one S x S mask for all of them.

    A batched product takes all heads of all sequences in one dimension. Factors that are ordered by token, not by head,
    are copied for that if there are several sequences, and so is the gradient of the result; repeated keys and values
    are ordered by head already.
    """
    heads, options = spec.num_attention_heads, spec if isinstance(spec, GroupedQueryAttentionSpec) else None
    per_group = heads // options.num_key_value_heads if options else 1
    copied = batch.sequences > 1 and _by_head(heads, batch)
    if per_group > 1:
        key, value = repeat(tape, key, per_group), repeat(tape, value, per_group)

    def by_head(factor: Array, *, ordered: bool = False) -> Array:
        return copy(tape, factor) if copied and not ordered else factor

    square = batch.length * batch.length
    squares = batch.sequences * heads * square
    scores = scale(tape, batched_product(tape, by_head(query), by_head(key, ordered=per_group > 1), squares))
    if options and options.logit_softcap:
        scores = scale(tape, unary(tape, scale(tape, scores), keeps_output=True))
    scores = _masked(tape, scores, _hidden_positions(tape, square, windowed=bool(options and options.window)))
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


def _hidden_positions(tape: Tape, square: int, *, windowed: bool) -> Array:
    """The mask of the positions after the token and, with `windowed`, of those before the window."""

    def triangle() -> Array:
        ones = tape.new(square, BOOL)
        out = tape.new(square, BOOL)
        del ones
        return out

    hidden = triangle()
    if not windowed:
        return hidden
    before_window = triangle()
    return tape.new(square, BOOL) if before_window else hidden
