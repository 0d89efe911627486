"""Bytes that a forward pass holds for backward, in closed form: every tensor that stays alive after it, by block.

The backward of a product needs both factors, each for the other's gradient. The backward of an activation function
needs its input or its output. Sums, scalings and copies need nothing. A block therefore holds the inputs of its
products and little else. The terms in common with a GPT block are those of Korthikanti et al. 2022 (arXiv 2205.05198,
§4.1): inputs of norms, projections and the activation function, queries, keys, values and probabilities.

The function of a block counts the block's input if the block holds it. It never counts the output, which is the next
block's input. A tensor that two operations hold counts once. Torch-free, from spec and setup alone, for one
micro-batch and the kernels that torch runs on CUDA; no operation is run or simulated.

Legend: B sequences, S tokens of each, T = B S, w bytes of an activation (2 or 4), D hidden_size, F intermediate_size,
V vocab_size, E experts, K experts per token, H query heads, G key/value heads, C channels of a head, R kv_lora_rank.
"""

from counting.formulas.held.attention import attention_held
from counting.formulas.held.feed_forward import (
    expert_hidden_numbers,
    feed_forward_held,
    routed_experts_held,
    router_held,
)
from counting.formulas.held.forward_pass import (
    BFLOAT16,
    FP32,
    INT32,
    INT64,
    ForwardPass,
    forward_pass,
    layer_norm_held,
    norm_held,
    stream_norm_held,
)
from counting.formulas.held.model import (
    boundary_bytes,
    embedding_held,
    head_held,
    layer_held,
    loss_held,
    mtp_layer_held,
    per_op_held,
    shared_by_branches,
    weight_bytes,
)

__all__ = [
    "BFLOAT16",
    "FP32",
    "INT32",
    "INT64",
    "ForwardPass",
    "attention_held",
    "boundary_bytes",
    "embedding_held",
    "expert_hidden_numbers",
    "feed_forward_held",
    "forward_pass",
    "head_held",
    "layer_held",
    "layer_norm_held",
    "loss_held",
    "mtp_layer_held",
    "norm_held",
    "per_op_held",
    "routed_experts_held",
    "router_held",
    "shared_by_branches",
    "stream_norm_held",
    "weight_bytes",
]
