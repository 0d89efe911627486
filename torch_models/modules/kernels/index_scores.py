"""The scores by which an indexer chooses keys, as one op: sum_h w_h relu(q_h k) for each query and key.

Kernels for it (DeepGEMM's `fp8_mqa_logits`) sum over the heads on the chip: of S x S scores only the sums are in
memory. This op has that interface and memory: on the meta device it allocates the sums, in fp32; keys after the query
have -inf. On a real device it computes the same numbers by elementary operations, one block of queries after another.
It has no backward pass: a choice of keys has no gradient. The legend of dimension letters is in layers.py.
"""

import torch
from torch import Size, Tensor

from torch_models.modules.kernels.flops import register

NAME = "model_training_cost::index_scores"
QUERY_BLOCK = 128  # queries whose scores by head are in memory at one time


@torch.library.custom_op(
    NAME, mutates_args=(), schema="(Tensor query, Tensor key, Tensor weights, float scale) -> Tensor"
)
def index_scores(query_BSHC: Tensor, key_BSC: Tensor, weights_BSH: Tensor, scale: float) -> Tensor:
    """Return sum_h weights_h relu(query_h key scale), (B, S, S) in fp32, or in fp64 for fp64."""
    out = _empty(query_BSHC)
    length = query_BSHC.shape[1]
    with torch.autocast(query_BSHC.device.type, enabled=False):
        keys = key_BSC.to(out.dtype).transpose(1, 2)
        for first in range(0, length, QUERY_BLOCK):
            block = slice(first, min(first + QUERY_BLOCK, length))
            query, weights = query_BSHC[:, block].to(out.dtype), weights_BSH[:, block].to(out.dtype)
            by_head = (query.flatten(1, 2) @ keys * scale).relu().unflatten(1, query.shape[1:3])
            out[:, block] = (weights.unsqueeze(-2) @ by_head).squeeze(-2)
    return out.masked_fill_(torch.ones(length, length, dtype=torch.bool, device=out.device).triu(1), float("-inf"))


@index_scores.register_fake
def _(query: Tensor, key: Tensor, weights: Tensor, scale: float) -> Tensor:
    del key, weights, scale
    return _empty(query)


def _empty(query: Tensor) -> Tensor:
    batch, length = query.shape[:2]
    precision = torch.float64 if query.dtype == torch.float64 else torch.float32
    return query.new_empty((batch, length, length), dtype=precision)


@register(torch.ops.model_training_cost.index_scores)
def index_scores_flops(query: Size, *_: object, **__: object) -> int:
    """FLOPs of S^2 pairs, those in the future included: 2 C for the score of each head, 2 for its weighted sum."""
    batch, length, heads, channels = query
    return 2 * batch * length**2 * heads * (channels + 1)
