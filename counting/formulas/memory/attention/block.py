"""Operations of attention, from its spec alone: projections, core, output projection.

The legend of dimension letters is in memory/layer.py.
"""

from counting.formulas.local.shapes import UNDIVIDED, Division
from counting.formulas.memory.attention.core import by_head_differs, eager_core, fused_core
from counting.formulas.memory.attention.grouped_queries import grouped_projections
from counting.formulas.memory.attention.latents import latent_projections
from counting.formulas.memory.blocks import sum_projection
from counting.formulas.memory.operations import (
    Operand,
    copy,
)
from counting.formulas.memory.parameters import own_parameter
from counting.formulas.memory.tape import Array, Tape
from counting.setup import MicroBatch
from torch_models.spec import (
    AttentionSpec,
    GroupedQueryAttentionSpec,
    Kernels,
    Recompute,
)


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
    chosen: Array | None = None
    if isinstance(spec, GroupedQueryAttentionSpec):
        if spec.sinks:
            sinks = own_parameter(tape, tape.parameter(spec.num_attention_heads, x.size.width), division)
        query, key, value = grouped_projections(tape, spec, x, batch, kernels, division)
        bias = spec.output_bias
    else:
        query, key, value, chosen = latent_projections(tape, spec, x, batch, kernels, division)
        bias = spec.bias

    def core(query: Array, key: Array, value: Array, *chosen: Array) -> Array:
        if kernels == "eager":
            return eager_core(tape, spec, query, key, value, sinks, batch, *chosen)
        return fused_core(tape, spec, query, key, value, sinks, batch, division, *chosen)

    factors = [query, key, value] if chosen is None else [query, key, value, chosen]
    attended = tape.checkpoint(core, *factors) if recompute == "selective" else core(*factors)
    by_head = kernels == "eager" or division.halves_queries
    flattened = None if by_head and by_head_differs(spec.num_attention_heads, batch) else attended
    if flattened is None:  # the core's output is ordered by head; the projection needs it ordered by token
        flattened = copy(tape, attended)
    width = spec.hidden_size
    return sum_projection(tape, flattened, batch.tokens, width, division, bias=bias)
