"""Fused attention with what torch's fused kernels lack: a window, chunks, soft-capped scores, sinks, chosen keys.

FlashAttention (arXiv 2307.08691) and similar kernels support all of them without an S x S matrix in memory, FlashMLA
keys that are chosen for each query, but torch has no such kernel under a public name. This op has their interface and
memory: on the meta device it allocates the same tensors, the output and one log-sum-exp per row. On a real device it
computes the same numbers by elementary operations in fp32 (in fp64 for fp64), one block of queries after another, each
with the keys within its window or its chunks. Its scores are therefore (QUERY_BLOCK, QUERY_BLOCK + window) per head, or
(QUERY_BLOCK, S) without a window. It is meant for CPUs; on CUDA devices flex_attention.py runs instead, except for
chosen keys. The legend of dimension letters is in layers.py.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Size, Tensor

from torch_models.modules.kernels.flops import attention_backward_flops, attention_flops, register

NAME = "model_training_cost::flash_attention"
QUERY_BLOCK = 128  # queries whose scores are in memory at one time
_ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? sinks, float scale, int? window, float? softcap, int? chunk"
)
_CHOSEN = "Tensor? chosen=None"  # positions of the keys that each query attends to, (B, S, K) in int32


@torch.library.custom_op(NAME, mutates_args=(), schema=f"({_ARGUMENTS}=None, {_CHOSEN}) -> (Tensor, Tensor)")
def flash_attention(
    query_BHSC: Tensor,
    key_BGSC: Tensor,
    value_BGSC: Tensor,
    sinks_H: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    chunk: int | None = None,
    chosen_BSK: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal attention within `window` or `chunk`, and to `chosen_BSK` alone if it is given.

    Return the output (B, H, S, C), and log-sum-exps (B, H, S) in fp32, or in fp64 if the inputs are.
    """
    out, logsumexp = _empty_outputs(query_BHSC, value_BGSC)
    with torch.autocast(query_BHSC.device.type, enabled=False):
        for block in _blocks(query_BHSC, window, chunk):
            capped = _capped_scores(block, query_BHSC, key_BGSC, scale, softcap)
            scores = _masked(capped, block, window, chunk, chosen_BSK)
            rows = scores.logsumexp(-1)
            if sinks_H is not None:
                rows = torch.logaddexp(rows, _by_group(sinks_H.to(rows.dtype), key_BGSC))
            probabilities = (scores - rows.unsqueeze(-1)).exp()
            attended = _multiplied(probabilities, value_BGSC[:, :, block.keys].to(scores.dtype))
            out[:, :, block.queries] = attended.flatten(1, 2)
            logsumexp[:, :, block.queries] = rows.flatten(1, 2)
    return out, logsumexp


@flash_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, *_: object) -> tuple[Tensor, Tensor]:
    return _empty_outputs(query, value)


def _empty_outputs(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    batch, heads, length, _channels = query.shape
    out = query.new_empty((batch, length, heads, value.shape[-1])).transpose(1, 2)
    return out, query.new_empty((batch, heads, length), dtype=_precision(query))


@torch.library.custom_op(
    f"{NAME}_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, {_ARGUMENTS}, Tensor out, Tensor logsumexp, {_CHOSEN})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def flash_attention_backward(
    gradient_BHSC: Tensor,
    query_BHSC: Tensor,
    key_BGSC: Tensor,
    value_BGSC: Tensor,
    sinks_H: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    chunk: int | None,
    out_BHSC: Tensor,
    logsumexp_BHS: Tensor,
    chosen_BSK: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of query, key, value and sinks, in their dtypes and strides (arXiv 2307.08691, §3.1.2).

    The gradient of the sinks is empty if there are none.
    """
    precision = _precision(query_BHSC)
    of_query, of_key, of_value, of_sinks = _empty_gradients(query_BHSC, key_BGSC, value_BGSC, sinks_H)
    sum_of_key, sum_of_value = (torch.zeros_like(x, dtype=precision) for x in (key_BGSC, value_BGSC))
    mean_BHS = torch.zeros_like(logsumexp_BHS)  # of the probabilities' gradient by row, the paper's D
    with torch.autocast(query_BHSC.device.type, enabled=False):
        for block in _blocks(query_BHSC, window, chunk):
            query, gradient, out = (
                _by_group(x[:, :, block.queries].to(precision), key_BGSC, dim=1)
                for x in (query_BHSC, gradient_BHSC, out_BHSC)
            )
            key, value = (x[:, :, block.keys].to(precision) for x in (key_BGSC, value_BGSC))
            logsumexp, mean = _by_group(logsumexp_BHS[:, :, block.queries], key_BGSC, dim=1), (gradient * out).sum(-1)
            capped = _capped_scores(block, query_BHSC, key_BGSC, scale, softcap)
            probabilities = (_masked(capped, block, window, chunk, chosen_BSK) - logsumexp.unsqueeze(-1)).exp()
            of_scores = probabilities * (_multiplied(gradient, value.transpose(2, 3)) - mean.unsqueeze(-1))
            if softcap is not None:
                of_scores = of_scores * (1 - (capped / softcap).square())
            of_query[:, :, block.queries] = (_multiplied(of_scores, key) * scale).flatten(1, 2)
            sum_of_key[:, :, block.keys] += _summed_product(of_scores, query) * scale
            sum_of_value[:, :, block.keys] += _summed_product(probabilities, gradient)
            mean_BHS[:, :, block.queries] = mean.flatten(1, 2)
        if sinks_H is not None:
            share = (sinks_H.to(precision).view(1, -1, 1) - logsumexp_BHS).exp()
            of_sinks.copy_(-(share * mean_BHS).sum((0, 2)))
    return of_query, of_key.copy_(sum_of_key), of_value.copy_(sum_of_value), of_sinks


@flash_attention_backward.register_fake
def _(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, *_: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_gradients(query, key, value, sinks)


def _empty_gradients(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_sinks = query.new_empty(0) if sinks is None else torch.empty_like(sinks)
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), of_sinks


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, sinks, *ctx.options, chosen = inputs  # type: ignore[attr-defined]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no tensor of zeros is allocated as the gradient of the log-sum-exp
    ctx.save_for_backward(query, key, value, sinks, *output, chosen)  # type: ignore[arg-type]


def _backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor, _: Tensor | None) -> tuple[object, ...]:
    query, key, value, sinks, *results, chosen = ctx.saved_tensors  # type: ignore[attr-defined]
    gradients = flash_attention_backward(gradient, query, key, value, sinks, *ctx.options, *results, chosen)  # type: ignore[attr-defined]
    return *gradients[:3], None if sinks is None else gradients[3], None, None, None, None, None


flash_attention.register_autograd(_backward, setup_context=_save)


# --- FLOPs -------------------------------------------------------------------------------------------------------


@register(torch.ops.model_training_cost.flash_attention)
def banded_attention_flops(
    query: Size,
    key: Size,
    value: Size,
    sinks: Size | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    chunk: int | None = None,
    chosen: Size | None = None,
    **_: object,
) -> int:
    """FLOPs of scores and weighted values over the pairs that the kernel visits, see `visited_pairs`."""
    del sinks, scale, softcap
    square = attention_flops(query, key, value)
    return square // (query[2] * key[2]) * visited_pairs(query[2], window, chunk, chosen)


@register(torch.ops.model_training_cost.flash_attention_backward)
def banded_attention_backward_flops(
    gradient: Size,
    query: Size,
    key: Size,
    value: Size,
    sinks: Size | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    chunk: int | None,
    out: Size,
    logsumexp: Size,
    chosen: Size | None = None,
    **_: object,
) -> int:
    """FLOPs of five products over the pairs that the forward pass visits, as torch counts its own fused kernels.

    They are the recomputed scores, and the gradients of probabilities, values, queries and keys (Dao 2023, arXiv
    2307.08691, §3.1.2).
    """
    del sinks, scale, softcap, out, logsumexp
    square = attention_backward_flops(gradient, query, key, value)
    return square // (query[2] * key[2]) * visited_pairs(query[2], window, chunk, chosen)


def visited_pairs(length: int, window: int | None, chunk: int | None, chosen: Size | None = None) -> int:
    """Pairs of a query and a key that the kernel visits for `length` queries, those with keys in the future included.

    A query visits at most `window` keys, or the `chosen` ones. With chunks it visits those of its chunk: a square for
    each, of which the last may be smaller.
    """
    if chosen is not None:
        return length * chosen[2]
    if chunk is None:
        return length * min(window or length, length)
    whole, rest = divmod(length, chunk)
    return whole * chunk**2 + rest**2


# --- One block of queries ----------------------------------------------------------------------------------------


class _Block(NamedTuple):
    queries: slice
    keys: slice  # all that some query of the block may see


def _blocks(query_BHSC: Tensor, window: int | None, chunk: int | None) -> Iterator[_Block]:
    length = query_BHSC.shape[2]
    for first in range(0, length, QUERY_BLOCK):
        end = min(first + QUERY_BLOCK, length)
        first_key = 0 if window is None else max(0, first - window + 1)
        if chunk is not None:
            first_key = first - first % chunk
        yield _Block(slice(first, end), slice(first_key, end))


def _precision(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _capped_scores(block: _Block, query_BHSC: Tensor, key_BGSC: Tensor, scale: float, softcap: float | None) -> Tensor:
    """The scores of a block, (B, G, H / G, queries, keys), soft-capped."""
    precision = _precision(query_BHSC)
    query = _by_group(query_BHSC[:, :, block.queries].to(precision), key_BGSC, dim=1)
    scores = _multiplied(query, key_BGSC[:, :, block.keys].to(precision).transpose(2, 3)) * scale
    return scores if softcap is None else softcap * (scores / softcap).tanh()


def _masked(scores: Tensor, block: _Block, window: int | None, chunk: int | None, chosen_BSK: Tensor | None) -> Tensor:
    """The scores with -inf for keys after the query, before its window or its chunk, or not chosen."""
    rows = torch.arange(block.queries.start, block.queries.stop, device=scores.device).unsqueeze(1)
    columns = torch.arange(block.keys.start, block.keys.stop, device=scores.device)
    hidden = columns > rows
    if window is not None:
        hidden |= columns <= rows - window
    if chunk is not None:
        hidden |= columns < rows - rows % chunk
    if chosen_BSK is not None:
        chosen = chosen_BSK[:, block.queries].long()
        others = torch.ones(*chosen.shape[:2], chosen_BSK.shape[1], dtype=torch.bool, device=scores.device)
        hidden = (hidden | others.scatter_(-1, chosen, False)[:, :, block.keys])[:, None, None]
    return scores.masked_fill(hidden, float("-inf"))


def _by_group(x: Tensor, key_BGSC: Tensor, dim: int = 0) -> Tensor:
    """Split the dimension of H heads in G groups: (…, G, H / G, …); sinks (H,) get a dimension for the queries."""
    grouped: Tensor = x.unflatten(dim, (key_BGSC.shape[1], -1))
    return grouped.unsqueeze(-1) if dim == 0 else grouped


def _multiplied(left: Tensor, right_BGnm: Tensor) -> Tensor:
    """(B, G, H / G, q, n) with (B, G, n, m), one product for each group: (B, G, H / G, q, m)."""
    product: Tensor = (left.flatten(2, 3) @ right_BGnm).unflatten(2, left.shape[2:4])
    return product


def _summed_product(left: Tensor, right: Tensor) -> Tensor:
    """(B, G, H / G, q, n) with (B, G, H / G, q, m), summed over heads and queries of a group: (B, G, n, m)."""
    summed: Tensor = left.flatten(2, 3).transpose(2, 3) @ right.flatten(2, 3)
    return summed
