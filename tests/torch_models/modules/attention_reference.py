"""Attention written as its definition says, in S x S matrices, and the cases in which kernels are held against it."""

from typing import NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    """Sequence length, window, cap of the scores, whether there are sinks, heads of queries and of keys, and chunk."""

    length: int = 20
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    heads: int = 4
    groups: int = 2
    channels: int = 16
    value_channels: int = 16
    chunk: int | None = None


CASES = {
    "causal": Case(),
    "window": Case(window=3),
    "window-of-one": Case(window=1),
    "window-beyond-the-sequence": Case(window=100),
    "cap": Case(softcap=2.0),
    "sinks": Case(sinks=True),
    "everything": Case(window=7, softcap=2.0, sinks=True),
    "one-head-each": Case(window=7, sinks=True, groups=4),
    "one-head-for-all": Case(window=7, softcap=2.0, groups=1),
    "chunks": Case(chunk=6),
    "chunk-beyond-the-sequence": Case(chunk=100),
    "chunks-longer-than-blocks": Case(length=40, chunk=13, softcap=2.0, sinks=True, groups=1),
    "unequal-channels": Case(window=7, channels=12, value_channels=5),
}

SCALE = 0.3


def inputs(
    case: Case, dtype: torch.dtype, *, contiguous: bool = False, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Queries (B, H, S, C), keys, values, and sinks (H,) or None; as views of (B, S, H, C) unless `contiguous`."""
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    sizes = ((case.heads, case.channels), (case.groups, case.channels), (case.groups, case.value_channels))
    query, key, value = (random(2, case.length, *size).transpose(1, 2) for size in sizes)
    if contiguous:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    sinks = random(case.heads).requires_grad_() if case.sinks else None
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_(), sinks


def attention_by_definition(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, case: Case) -> Tensor:
    """softmax over the visible keys and the sink, (B, H, S, C)."""
    key, value = (x.repeat_interleave(case.heads // case.groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * SCALE
    if case.softcap is not None:
        scores = case.softcap * (scores / case.softcap).tanh()
    position = torch.arange(case.length, device=query.device)
    distance = position.unsqueeze(1) - position
    hidden = (distance < 0) | (distance >= (case.window or case.length))
    if case.chunk is not None:
        hidden |= position.unsqueeze(1) // case.chunk != position // case.chunk
    scores = scores.masked_fill(hidden, -torch.inf)
    if sinks is None:
        return scores.softmax(-1) @ value
    last = sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.cat((scores, last), dim=-1).softmax(-1)[..., :-1] @ value


def gradients(out: Tensor, *of: Tensor | None) -> list[Tensor]:
    """The gradients of a loss that weighs every number of `out` differently."""
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(8)).to(out.device, out.dtype)
    return list(torch.autograd.grad(out, [x for x in of if x is not None], weights))
