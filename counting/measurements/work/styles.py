"""Layers as other software runs them than the modules of this project."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from counting.work import LayerStyle
from torch_models.modules.attention import grouped_queries, latents
from torch_models.modules.layers import RotaryTables

# As torchtitan had them until 2025 (github.com/pytorch/torchtitan, commit 9dec370): `RMSNorm` of
# torchtitan/models/norms.py, `apply_rotary_emb` and `repeat_kv` of torchtitan/models/llama/model.py.


@contextlib.contextmanager
def layers_run_as(style: LayerStyle) -> Iterator[None]:
    """Context in which layers run so; call it inside `measuring`, which decides how fused ops run."""
    with contextlib.ExitStack() as stack:
        if style.norms == "op_by_op":
            stack.enter_context(_replaced(F, "rms_norm", _op_by_op))
        if style.rotation == "complex":
            for module in (grouped_queries, latents):
                stack.enter_context(_replaced(module, "apply_rotary", _rotated_as_complex))
        if style.key_value_heads == "repeated":
            fused = F.scaled_dot_product_attention
            stack.enter_context(_replaced(F, "scaled_dot_product_attention", _with_copies(fused)))
        yield


@contextlib.contextmanager
def _replaced(module: Any, name: str, function: Callable[..., Tensor]) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, function)
    try:
        yield
    finally:
        setattr(module, name, before)


def _op_by_op(x: Tensor, normalized_shape: Any, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) in fp32, then in x's dtype times the weight if there is one, each op by itself."""
    wide = x.float()
    normed = (wide * torch.rsqrt(torch.mean(wide * wide, dim=-1, keepdim=True) + eps)).type_as(x)
    return normed if weight is None else normed * weight


def _rotated_as_complex(x_BSHC: Tensor, tables: RotaryTables, interleaved: bool) -> Tensor:
    """Pairs of channels as complex numbers of two fp32, times a table of such numbers, which is there before."""
    if not tables:
        return x_BSHC
    table = torch.empty_like(tables[0], dtype=torch.complex64).unsqueeze(1)
    pairs = torch.view_as_complex(x_BSHC.float().reshape(*x_BSHC.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * table).flatten(3).type_as(x_BSHC)


def _with_copies(fused: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`fused` attention with a copy of keys and values for each query head."""

    def attend(query_BHSC: Tensor, key_BGSC: Tensor, value_BGSC: Tensor, **kwargs: Any) -> Tensor:
        copies = query_BHSC.shape[1] // key_BGSC.shape[1]
        if copies > 1:
            key_BGSC, value_BGSC = (_repeated(x, copies) for x in (key_BGSC, value_BGSC))
        return fused(query_BHSC, key_BGSC, value_BGSC, **{**kwargs, "enable_gqa": False})

    return attend


def _repeated(x_BGSC: Tensor, copies: int) -> Tensor:
    sequences, heads, positions, channels = x_BGSC.shape
    x_BSGC = x_BGSC.transpose(1, 2)[:, :, :, None]
    x_BSHC = x_BSGC.expand(sequences, positions, heads, copies, channels).reshape(sequences, positions, -1, channels)
    return x_BSHC.transpose(1, 2)
