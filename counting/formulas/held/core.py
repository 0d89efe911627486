"""Bytes that an attention core holds for backward beside its inputs and its output, in closed form.

The legend of dimension letters is in `counting.formulas.held`.
"""

from counting.setup import MicroBatch
from torch_models.spec import AttentionSpec, GroupedQueryAttentionSpec

SCORE_BYTES = 4  # of a probability, or of the logarithm of a row's sum, in fp32
POSITION_BYTES = 4  # of a chosen key, in int32
FLASH_STATE_BYTES = 24  # seed and offset of dropout, which torch's flash attention keeps even without dropout
EFFICIENT_STATE_BYTES = 16  # seed and offset in torch's memory-efficient attention
EFFICIENT_ROWS_MULTIPLE = 32  # memory-efficient attention rounds its log-sum-exp rows up to a multiple of this


def fused_core_held(spec: AttentionSpec, micro_batch: MicroBatch) -> int:
    """Return bytes of the log-sum-exp of each row of scores and of the random state.

    Flash attention requires values as wide as keys; else torch's memory-efficient kernel runs. A kernel with a window,
    chunks, soft-capped scores, sinks or chosen keys has no random state.
    """
    heads, rows = spec.num_attention_heads, micro_batch.tokens
    if isinstance(spec, GroupedQueryAttentionSpec):
        state = 0 if spec.needs_own_kernel else FLASH_STATE_BYTES
    elif spec.indexer is not None:
        state = 0
    elif spec.qk_head_dim == spec.v_head_dim:
        state = FLASH_STATE_BYTES
    else:
        sequences, length = micro_batch
        rows = sequences * -(-length // EFFICIENT_ROWS_MULTIPLE) * EFFICIENT_ROWS_MULTIPLE
        state = EFFICIENT_STATE_BYTES
    return SCORE_BYTES * heads * rows + state


def chosen_held(spec: AttentionSpec, micro_batch: MicroBatch) -> int:
    """Return bytes of the positions of the keys that an indexer chooses for each query, K numbers in int32."""
    if isinstance(spec, GroupedQueryAttentionSpec) or spec.indexer is None:
        return 0
    return POSITION_BYTES * micro_batch.tokens * min(spec.indexer.top_k, micro_batch.length)


def eager_core_held(
    heads: int,
    micro_batch: MicroBatch,
    width: int,
    *,
    softcap: bool = False,
    sinks: bool = False,
    chosen: bool = False,
) -> int:
    """Return bytes of the S x S tensors of an eager core, one per sequence and head; all share one mask.

    Queries, keys, values and the result are counted by the caller.

    - mask: the masked positions, one byte per pair, to set their gradient to zero; with keys `chosen` for each query,
      of each sequence;
    - capped: with soft-capped scores, the output of tanh, for its gradient;
    - probabilities: the output of softmax in fp32, for its gradient; a sink adds one column;
    - rounded: the probabilities in the format of the values, for the product with them; 0 if that is fp32.
    """
    sequences, length = micro_batch
    mask = length**2 * (sequences if chosen else 1)
    squares = sequences * heads * length**2
    capped = width * squares if softcap else 0
    probabilities = SCORE_BYTES * (squares + sinks * heads * micro_batch.tokens)
    rounded = 0 if width == SCORE_BYTES else width * squares
    return mask + capped + probabilities + rounded
