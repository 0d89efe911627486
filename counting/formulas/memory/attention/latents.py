"""Operations of the projections of multi-head latent attention.

The legend of dimension letters is in memory/layer.py.
"""

from counting.formulas.local.shapes import Division
from counting.formulas.memory.attention.indexer import choose_keys
from counting.formulas.memory.attention.rotation import rotate
from counting.formulas.memory.blocks import norm, projection
from counting.formulas.memory.operations import (
    join,
    linear,
    repeat_view,
    split,
)
from counting.formulas.memory.parameters import summed_parameter
from counting.formulas.memory.tape import Array, Tape
from counting.setup import MicroBatch
from torch_models.spec import (
    Kernels,
    MultiHeadLatentAttentionSpec,
)


def latent_projections(
    tape: Tape, spec: MultiHeadLatentAttentionSpec, x: Array, batch: MicroBatch, kernels: Kernels, division: Division
) -> tuple[Array, Array, Array, Array | None]:
    """Query, key and value, and the positions that an indexer chooses; the value is a view of the expanded latent."""
    tokens = batch.tokens
    query, chosen = _latent_query(tape, spec, x, batch, kernels, division)
    heads, rope = spec.num_attention_heads, spec.qk_rope_head_dim
    both = _to_latent(tape, spec, x, tokens, spec.kv_lora_rank + rope, division)
    latent, shared = split(tape, both, tokens * spec.kv_lora_rank, tokens * rope)
    width = heads * (spec.qk_nope_head_dim + spec.v_head_dim)
    normed = norm(tape, latent, tokens, kernels, gaps=tokens > 1, division=division)
    expanded = projection(tape, normed, tokens, width, division)
    del normed
    own, value = split(tape, expanded, tokens * heads * spec.qk_nope_head_dim, tokens * heads * spec.v_head_dim)
    rotated = rotate(tape, shared, tokens * rope, interleaved=spec.rotary.interleaved)
    return query, join(tape, own, repeat_view(tape, rotated, heads)), value, chosen


def _to_latent(
    tape: Tape, spec: MultiHeadLatentAttentionSpec, x: Array, tokens: int, width: int, division: Division
) -> Array:
    """Project to a latent, which each rank does for all heads."""
    weight = summed_parameter(tape, tape.parameter(spec.hidden_size * width, x.size.width), division)
    bias = summed_parameter(tape, tape.parameter(width, x.size.width), division) if spec.bias else None
    return linear(tape, x, tokens, width, weight=weight, bias=bias)


def _latent_query(
    tape: Tape, spec: MultiHeadLatentAttentionSpec, x: Array, batch: MicroBatch, kernels: Kernels, division: Division
) -> tuple[Array, Array | None]:
    heads, rope, tokens = spec.num_attention_heads, spec.qk_rope_head_dim, batch.tokens
    chosen: Array | None = None
    width = heads * (spec.qk_nope_head_dim + rope)
    if spec.q_lora_rank is None:
        query = projection(tape, x, tokens, width, division)
    else:
        latent = norm(
            tape, _to_latent(tape, spec, x, tokens, spec.q_lora_rank, division), tokens, kernels, division=division
        )
        if spec.indexer is not None:
            chosen = choose_keys(tape, spec, spec.indexer, x, latent, batch, kernels)
        query = projection(tape, latent, tokens, width, division)
        del latent
    own, turned = split(tape, query, tokens * heads * spec.qk_nope_head_dim, tokens * heads * rope)
    rotated = rotate(tape, turned, tokens * heads * rope, interleaved=spec.rotary.interleaved)
    return join(tape, own, rotated), chosen
