"""CUDA's fused kernels of attention as plain arithmetic on the CPU, which torch's ring attention calls.

Torch has no such kernels for the CPU, so no ring could run on gloo. What is under test is then torch's ring, the cut of
the batch, and all else around the kernels: they compute what their definition says, from the sums of exponents, which
are those of all keys in backward.
"""

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

from counting.measurements.ranks.stand_ins import replaced

aten = torch.ops.aten

_registered: list[Any] = []  # a library unregisters its kernels when nothing refers to it


def _probabilities(query: Tensor, key: Tensor, is_causal: bool, scale: float | None) -> tuple[Tensor, Tensor]:
    """Scores in fp32, minus infinity for keys in the future, and the logarithm of the sum of their exponents."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query.float() @ key.float().transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        hidden = torch.ones(scores.shape[2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores, scores.logsumexp(-1)


def _attended(query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float | None) -> tuple[Tensor, Tensor]:
    scores, sums = _probabilities(query, key, is_causal, scale)
    value = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    return (scores - sums.unsqueeze(-1)).exp() @ value.float(), sums


def _gradients(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    groups = key.shape[1]

    def by_group(x: Tensor) -> Tensor:
        return x.unflatten(1, (groups, -1)).sum(2)

    scores, _ = _probabilities(query, key, causal, scale)
    probabilities = (scores - sums.unsqueeze(-1)).exp()
    keys, values = (x.repeat_interleave(query.shape[1] // groups, dim=1).float() for x in (key, value))
    gradient = gradient.float()
    of_scores = probabilities * (gradient @ values.transpose(2, 3) - (gradient * out.float()).sum(-1, keepdim=True))
    of_query = of_scores @ keys * scale
    of_key = by_group(of_scores.transpose(2, 3) @ query.float()) * scale
    return of_query, of_key, by_group(probabilities.transpose(2, 3) @ gradient)


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    assert dropout_p == 0
    assert not return_debug_mask
    attended, sums = _attended(query, key, value, is_causal, scale)
    seed, offset = torch.zeros(2, dtype=torch.uint64), torch.zeros((), dtype=torch.uint64)
    out = torch.empty_like(query).copy_(attended)
    return out, sums, None, None, query.shape[2], key.shape[2], seed, offset, query.new_empty(0)


def _flash_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    sums: Tensor,
    _first: object,
    _second: object,
    _max_q: int,
    _max_k: int,
    _dropout: float,
    is_causal: bool,
    _seed: Tensor,
    _offset: Tensor,
    *,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    found = _gradients(gradient, query, key, value, out, sums, is_causal, scale)
    return tuple(torch.empty_like(x).copy_(each) for x, each in zip((query, key, value), found, strict=True))


def _by_position(x: Tensor) -> Tensor:
    """An empty tensor (B, H, S, C) in the order of memory of (B, S, H, C), in which this kernel writes its results."""
    return torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    compute_sums: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    assert bias is None
    assert compute_sums
    assert dropout_p == 0
    attended, sums = _attended(query, key, value, is_causal, scale)
    padded = F.pad(sums, (0, -sums.shape[-1] % 32))
    out = _by_position(attended.to(query.dtype)).copy_(attended)
    return out, padded, torch.zeros((), dtype=torch.long), torch.zeros((), dtype=torch.long)


def _efficient_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    out: Tensor,
    sums: Tensor,
    _seed: Tensor,
    _offset: Tensor,
    _dropout: float,
    _mask: list[bool],
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    sums = sums[..., : query.shape[2]]
    found = _gradients(gradient, query, key, value, out, sums, is_causal, scale)
    return *(_by_position(x).copy_(each) for x, each in zip((query, key, value), found, strict=True)), None


@cache
def register_kernels() -> None:
    """Register the kernels for the CPU, where torch has none, until this process ends."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_scaled_dot_product_flash_attention", _flash, "CPU")
    library.impl("_scaled_dot_product_flash_attention_backward", _flash_backward, "CPU")
    library.impl("_scaled_dot_product_efficient_attention", _efficient, "CPU")
    library.impl("_scaled_dot_product_efficient_attention_backward", _efficient_backward, "CPU")
    _registered.append(library)


@contextlib.contextmanager
def kernels_on_the_cpu() -> Iterator[None]:
    """Context in which attention over DTensors on the CPU calls the kernels that it calls on CUDA."""
    register_kernels()
    plain = F.scaled_dot_product_attention

    def attention(query: Any, key: Any, value: Any, *, is_causal: bool, scale: float, enable_gqa: bool) -> Any:
        if not isinstance(query, DTensor):
            return plain(query, key, value, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa)
        if query.shape[-1] == value.shape[-1]:
            return aten._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal, scale=scale)[0]
        kept = torch.is_grad_enabled()
        return aten._scaled_dot_product_efficient_attention(query, key, value, None, kept, 0.0, is_causal, scale=scale)[
            0
        ]

    with replaced(F, "scaled_dot_product_attention", attention):
        yield
