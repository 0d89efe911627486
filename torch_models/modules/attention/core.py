"""The core of causal attention: scores, softmax and weighted values, fused in one kernel or step by step."""

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_models.modules.kernels.flash_attention import flash_attention
from torch_models.modules.kernels.flex_attention import flex_attention, has_flex_attention
from torch_models.spec import MAX_FLASH_CHANNELS, Kernels


def causal_attention(
    query_BSHC: Tensor,
    key_BSGC: Tensor,
    value_BSGC: Tensor,
    *,
    scale: float,
    kernels: Kernels,
    heads_per_group: int = 1,
    window: int | None = None,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
    chunk: int | None = None,
    chosen_BSK: Tensor | None = None,
) -> Tensor:
    """Return softmax(query key^T * scale) value with a causal mask, of shape (B, S, H, C of value).

    With `window` a position attends to at most that many positions, itself included; with `chunk` to those of its chunk
    of that many; with `chosen_BSK`, the positions of K keys for each query, to these alone, in every head. `softcap`
    bounds the scores: cap * tanh(scores / cap). `sinks_H` is one more score per head that enters the softmax but has no
    value.
    """
    query, key, value = (x.transpose(1, 2) for x in (query_BSHC, key_BSGC, value_BSGC))
    if kernels == "eager":
        out = _eager_attention(query, key, value, scale, heads_per_group, window, softcap, sinks_H, chunk, chosen_BSK)
    elif chosen_BSK is None and _is_plain(query, window, softcap, sinks_H, chunk):
        grouped = heads_per_group > 1
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
    elif chosen_BSK is None and has_flex_attention(query):
        out = flex_attention(query, key, value, sinks_H, scale, window, softcap, chunk)
    else:
        out = flash_attention(query, key, value, sinks_H, scale, window, softcap, chunk, chosen_BSK)[0]
    return out.transpose(1, 2)


def _is_plain(
    query_BHSC: Tensor, window: int | None, softcap: float | None, sinks_H: Tensor | None, chunk: int | None
) -> bool:
    """Whether torch's flash attention computes it."""
    plain = window is None and softcap is None and sinks_H is None and chunk is None
    return plain and query_BHSC.shape[-1] <= MAX_FLASH_CHANNELS


def _eager_attention(
    query_BHSC: Tensor,
    key_BGSC: Tensor,
    value_BGSC: Tensor,
    scale: float,
    heads_per_group: int,
    window: int | None,
    softcap: float | None,
    sinks_H: Tensor | None,
    chunk: int | None,
    chosen_BSK: Tensor | None,
) -> Tensor:
    """Attention with scores and probabilities as S x S tensors for every head; the softmax is in fp32."""
    if heads_per_group > 1:
        key_BGSC, value_BGSC = (x.repeat_interleave(heads_per_group, dim=1) for x in (key_BGSC, value_BGSC))
    scores = torch.matmul(query_BHSC, key_BGSC.transpose(2, 3)) * scale
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    scores = scores.masked_fill(_hidden_positions(scores, window, chunk, chosen_BSK), float("-inf"))
    if sinks_H is None:
        probabilities = F.softmax(scores, dim=-1, dtype=torch.float32)
    else:
        sinks = sinks_H.view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        probabilities = F.softmax(torch.cat((scores, sinks), dim=-1), dim=-1, dtype=torch.float32)[..., :-1]
    return torch.matmul(probabilities.to(scores.dtype), value_BGSC)


def _hidden_positions(scores_BHSS: Tensor, window: int | None, chunk: int | None, chosen_BSK: Tensor | None) -> Tensor:
    """Return the mask (S, S), True for keys (columns) after the query (row), or before its window or its chunk.

    With `chosen_BSK` it is (B, 1, S, S), and True for keys that are not chosen too.
    """
    length = scores_BHSS.shape[-1]
    hidden = torch.ones(length, length, dtype=torch.bool, device=scores_BHSS.device).triu(1)
    if chosen_BSK is not None:
        return (hidden | _not_chosen(chosen_BSK, length)).unsqueeze(1)
    if chunk is not None:
        chunks = torch.arange(length, device=scores_BHSS.device) // chunk
        return hidden | (chunks.unsqueeze(1) != chunks)
    if window is None:
        return hidden
    return hidden | torch.ones(length, length, dtype=torch.bool, device=scores_BHSS.device).tril(-window)


def _not_chosen(chosen_BSK: Tensor, length: int) -> Tensor:
    """Return the mask (B, S, S), False for keys whose positions are given."""
    ones = torch.ones(*chosen_BSK.shape[:2], length, dtype=torch.bool, device=chosen_BSK.device)
    return ones.scatter(-1, chosen_BSK.long(), 0)
