"""Operations of an indexer, which run without gradients: nothing is kept for backward.

The legend of dimension letters is in memory/layer.py.
"""

from counting.formulas.memory.attention.rotation import rotate
from counting.formulas.memory.blocks import layer_norm
from counting.formulas.memory.operations import OTHER, batched_product, cast, linear, scale, unary
from counting.formulas.memory.tape import BOOL, INT, LONG, SINGLE, Array, Size, Tape
from counting.setup import MicroBatch
from torch_models.spec import IndexerSpec, Kernels, MultiHeadLatentAttentionSpec


def choose_keys(
    tape: Tape,
    attention: MultiHeadLatentAttentionSpec,
    spec: IndexerSpec,
    x: Array,
    latent: Array,
    batch: MicroBatch,
    kernels: Kernels,
) -> Array:
    """The positions of the chosen keys, (B, S, K) in int32, from the normed input and the latent of the queries."""
    recording, tape.recording = tape.recording, False
    scores = _scores(tape, attention, spec, x, latent, batch, kernels)
    number = batch.tokens * min(spec.top_k, batch.length)
    best, indices = tape.born_of(OTHER, Size(number, SINGLE), Size(number, LONG))
    del best
    chosen = tape.new(number, INT)
    del scores, indices
    tape.recording = recording
    return chosen


def _scores(
    tape: Tape,
    attention: MultiHeadLatentAttentionSpec,
    spec: IndexerSpec,
    x: Array,
    latent: Array,
    batch: MicroBatch,
    kernels: Kernels,
) -> Array:
    tokens, heads, channels = batch.tokens, spec.num_heads, spec.head_dim
    turned = attention.rotary.dim

    def rotated(projected: Array, heads: int) -> Array:
        return rotate(tape, projected, tokens * heads * turned, interleaved=spec.interleaved)

    query = rotated(linear(tape, latent, tokens, heads * channels), heads)
    key = rotated(layer_norm(tape, linear(tape, x, tokens, channels), tokens), 1)
    weights = linear(tape, x, tokens, heads)
    if kernels == "fused":
        return tape.new(tokens * batch.length, SINGLE)
    return _eager_scores(tape, query, key, weights, batch, heads)


def _eager_scores(tape: Tape, query: Array, key: Array, weights: Array, batch: MicroBatch, heads: int) -> Array:
    """Scores of each head, scaled and cut off at 0; their weighted sum; and the mask of the positions after a token."""
    squares = batch.tokens * batch.length
    scores = batched_product(tape, cast(tape, query, SINGLE), cast(tape, key, SINGLE), heads * squares)
    scores = unary(tape, scale(tape, scores))
    single = cast(tape, weights, SINGLE)
    summed = batched_product(tape, single, scores, squares)
    del scores, single
    square = batch.length * batch.length
    ones = tape.new(square, BOOL)
    hidden = tape.new(square, BOOL)
    del ones
    out = tape.new(squares, SINGLE)
    del hidden, summed
    return out
