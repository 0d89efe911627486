"""Attention with windows, chunks, soft-capped scores or sinks on CUDA devices: FlexAttention (arXiv 2412.05496).

FlexAttention is compiled to one kernel that visits only the blocks of keys within the window or the chunk, so that no
S x S tensor is allocated, for scores or for the mask. Torch's compiler is imported on the first call, which also
compiles. A model that is compiled as a whole contains the same operations. The legend of dimension letters is in
layers.py.
"""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128  # queries, and keys, of one block of the mask
LEAST_CHANNELS = 16  # of a head; the kernel accepts no smaller ones
# Each window or chunk, length, head size and dtype, with and without gradients, is a version of the compiled function.
MOST_VERSIONS = 64


def has_flex_attention(query: Tensor) -> bool:
    """Whether the kernel runs for this tensor: on a CUDA device, in fp16, bf16 or fp32."""
    return query.is_cuda and query.dtype in (torch.float16, torch.bfloat16, torch.float32)


def flex_attention(
    query_BHSC: Tensor,
    key_BGSC: Tensor,
    value_BGSC: Tensor,
    sinks_H: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    chunk: int | None = None,
) -> Tensor:
    """Return what `flash_attention` returns first, (B, H, S, C).

    Sinks enlarge the softmax's denominator, so they scale the output by sigmoid(log-sum-exp - sink). The scaled output
    is one more tensor of its size that is kept for backward.
    """
    arguments = (query_BHSC, key_BGSC, value_BGSC, sinks_H, scale, window, softcap, chunk)
    if torch.compiler.is_compiling():
        return uncompiled(*arguments)
    import torch._dynamo.config as compiler_settings

    with compiler_settings.patch(recompile_limit=MOST_VERSIONS):
        return _compiled()(*arguments)


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(uncompiled, fullgraph=True)  # beyond the limit an error; never silently S x S


def uncompiled(
    query_BHSC: Tensor,
    key_BGSC: Tensor,
    value_BGSC: Tensor,
    sinks_H: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    chunk: int | None = None,
) -> Tensor:
    """The function that is compiled."""
    from torch.nn.attention.flex_attention import AuxRequest
    from torch.nn.attention.flex_attention import flex_attention as torch_flex_attention

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        assert softcap is not None
        return softcap * torch.tanh(score / softcap)

    channels = value_BGSC.shape[-1]
    attended: Any = torch_flex_attention(
        _widened(query_BHSC),
        _widened(key_BGSC),
        _widened(value_BGSC),
        score_mod=None if softcap is None else capped,
        block_mask=visible_blocks(query_BHSC.shape[2], window, query_BHSC.device, chunk=chunk),
        scale=scale,
        enable_gqa=query_BHSC.shape[1] != key_BGSC.shape[1],
        return_aux=None if sinks_H is None else AuxRequest(lse=True),
    )
    if sinks_H is None:
        out: Tensor = attended
    else:
        unscaled, auxiliary = attended
        share = torch.sigmoid(auxiliary.lse - sinks_H.view(1, -1, 1).to(auxiliary.lse.dtype))
        out = (unscaled * share.unsqueeze(-1)).to(query_BHSC.dtype)
    return out[..., :channels]


def _widened(x_BHSC: Tensor) -> Tensor:
    """The tensor with at least `LEAST_CHANNELS` channels; those that are added are zero."""
    missing = LEAST_CHANNELS - x_BHSC.shape[-1]
    return F.pad(x_BHSC, (0, missing)) if missing > 0 else x_BHSC


def visible_blocks(length: int, window: int | None, device: torch.device, *, chunk: int | None = None) -> "BlockMask":
    """Return which blocks of keys each block of queries visits, from the window or the chunk alone.

    Torch's `create_block_mask` would allocate the mask of S x S first. A block that is visible as a whole is listed
    apart: the kernel applies no mask to it.
    """
    from torch.nn.attention.flex_attention import BlockMask

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del batch, head
        seen = query >= key
        if chunk is not None:
            return seen & (query // chunk == key // chunk)
        return seen if window is None else seen & (query - key < window)

    count = (length + BLOCK - 1) // BLOCK
    block = torch.arange(count, device=device, dtype=torch.int32)
    first_visited = torch.zeros_like(block)
    first_whole = torch.zeros_like(block)
    if window is not None:
        first_visited = ((block * BLOCK - window + 1).clamp(min=0)) // BLOCK
        # The last query of the block sees the first key of the first whole block.
        first_whole = ((block * BLOCK + 2 * BLOCK - 1 - window).clamp(min=0)) // BLOCK
    if chunk is not None:
        first_query, last_query = block * BLOCK, (block * BLOCK + BLOCK - 1).clamp(max=length - 1)
        first_visited = (first_query - first_query % chunk) // BLOCK
        first_whole = (last_query - last_query % chunk + BLOCK - 1) // BLOCK
    whole = (block - first_whole).clamp(min=0)
    if length % BLOCK:
        whole = torch.where(block == count - 1, 0, whole)  # a block that is not full has a mask
    # Per block of queries: partly visible blocks before and after the whole ones, then the others in any order.
    partly = block - first_visited + 1 - whole
    before = torch.where(whole > 0, first_whole - first_visited, partly)
    columns = torch.arange(count, device=device, dtype=torch.int32).unsqueeze(0)
    partial_indices = first_visited[:, None] + columns + torch.where(columns >= before[:, None], whole[:, None], 0)
    whole_indices = first_whole[:, None] + columns
    return BlockMask.from_kv_blocks(
        partly[None, None],
        (partial_indices % count)[None, None].to(torch.int32),
        whole[None, None].to(torch.int32),
        (whole_indices % count)[None, None].to(torch.int32),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(length, length),
    )
