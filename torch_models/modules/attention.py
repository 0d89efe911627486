"""Grouped-query and multi-head latent attention: causal, over whole sequences, as in training.

The legend of dimension letters is in layers.py; R is kv_lora_rank.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_models.first_values import OwnFirstValues
from torch_models.modules.kernels.flash_attention import flash_attention
from torch_models.modules.kernels.flex_attention import flex_attention, has_flex_attention
from torch_models.modules.layers import Linear, RMSNorm, RotaryTables, apply_rotary, softmax_scale
from torch_models.modules.recompute import run
from torch_models.spec import GroupedQueryAttentionSpec, Kernels, MultiHeadLatentAttentionSpec

LATENT_NORM_EPS = 1e-6  # of DeepSeek's latent norms, whatever the config's rms_norm_eps


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
) -> Tensor:
    """Return softmax(query key^T * scale) value with a causal mask, of shape (B, S, H, C of value).

    With `window` a position attends to at most that many positions, itself included. `softcap` bounds the scores:
    cap * tanh(scores / cap). `sinks_H` is one more score per head that enters the softmax but has no value.
    """
    query, key, value = (x.transpose(1, 2) for x in (query_BSHC, key_BSGC, value_BSGC))
    if kernels == "eager":
        out = _eager_attention(query, key, value, scale, heads_per_group, window, softcap, sinks_H)
    elif window is None and softcap is None and sinks_H is None:
        grouped = heads_per_group > 1
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
    elif has_flex_attention(query):
        out = flex_attention(query, key, value, sinks_H, scale, window, softcap)
    else:
        out = flash_attention(query, key, value, sinks_H, scale, window, softcap)[0]
    return out.transpose(1, 2)


def _eager_attention(
    query_BHSC: Tensor,
    key_BGSC: Tensor,
    value_BGSC: Tensor,
    scale: float,
    heads_per_group: int,
    window: int | None,
    softcap: float | None,
    sinks_H: Tensor | None,
) -> Tensor:
    """Attention with scores and probabilities as S x S tensors for every head; the softmax is in fp32."""
    if heads_per_group > 1:
        key_BGSC, value_BGSC = (x.repeat_interleave(heads_per_group, dim=1) for x in (key_BGSC, value_BGSC))
    scores = torch.matmul(query_BHSC, key_BGSC.transpose(2, 3)) * scale
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    scores = scores.masked_fill(_hidden_positions(scores, window), float("-inf"))
    if sinks_H is None:
        probabilities = F.softmax(scores, dim=-1, dtype=torch.float32)
    else:
        sinks = sinks_H.view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        probabilities = F.softmax(torch.cat((scores, sinks), dim=-1), dim=-1, dtype=torch.float32)[..., :-1]
    return torch.matmul(probabilities.to(scores.dtype), value_BGSC)


def _hidden_positions(scores_BHSS: Tensor, window: int | None) -> Tensor:
    """Return the mask (S, S), True for keys (columns) after the query (row) or before its window."""
    length = scores_BHSS.shape[-1]
    hidden = torch.ones(length, length, dtype=torch.bool, device=scores_BHSS.device).triu(1)
    if window is None:
        return hidden
    return hidden | torch.ones(length, length, dtype=torch.bool, device=scores_BHSS.device).tril(-window)


class GroupedQueryAttention(OwnFirstValues):
    """Attention with query heads in equal groups that share a key/value head (Ainslie et al. 2023, 2305.13245)."""

    component = "attention"
    recompute_core = False  # see recompute.py

    def __init__(self, spec: GroupedQueryAttentionSpec, kernels: Kernels) -> None:
        super().__init__()
        self.kernels: Kernels = kernels
        self.attend: Callable[..., Tensor] = causal_attention  # another function where ranks divide the positions
        self.head_dim = spec.head_dim
        self.heads_per_group = spec.num_attention_heads // spec.num_key_value_heads
        self.rotary_dim = spec.rotary.dim
        self.interleaved = spec.rotary.interleaved
        self.window = spec.window
        self.softcap = spec.logit_softcap
        self.sinks = nn.Parameter(torch.empty(spec.num_attention_heads)) if spec.sinks else None
        self.scale = softmax_scale(spec.rotary, spec.scale_channels or spec.head_dim)
        query_width = spec.num_attention_heads * spec.head_dim
        key_value_width = spec.num_key_value_heads * spec.head_dim
        self.q_proj = Linear(spec.hidden_size, query_width, bias=spec.qkv_bias)
        self.k_proj = Linear(spec.hidden_size, key_value_width, bias=spec.qkv_bias)
        self.v_proj = Linear(spec.hidden_size, key_value_width, bias=spec.qkv_bias)
        self.o_proj = Linear(query_width, spec.hidden_size, bias=spec.output_bias)
        self.norm_over_width = spec.query_key_norm == "width"
        self.q_norm = self.k_norm = None
        if spec.query_key_norm:
            widths = (query_width, key_value_width) if self.norm_over_width else (spec.head_dim, spec.head_dim)
            self.q_norm, self.k_norm = (RMSNorm(width, spec.norm_eps, kernels) for width in widths)

    def forward(self, x_BSD: Tensor, rotary: RotaryTables) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        query = self._rotate(self._project(self.q_proj, self.q_norm, x_BSD), rotary)
        key = self._rotate(self._project(self.k_proj, self.k_norm, x_BSD), rotary)
        value = self._heads(self.v_proj(x_BSD))
        attended_BSHC = run(
            self.attend,
            query,
            key,
            value,
            recompute=self.recompute_core,
            scale=self.scale,
            kernels=self.kernels,
            heads_per_group=self.heads_per_group,
            window=self.window,
            softcap=self.softcap,
            sinks_H=self.sinks,
        )
        out: Tensor = self.o_proj(attended_BSHC.flatten(2))
        return out

    def _project(self, projection: nn.Module, norm: nn.Module | None, x_BSD: Tensor) -> Tensor:
        """Return queries or keys by head, (B, S, heads, C), normalised if `norm` is given."""
        projected = projection(x_BSD)
        if norm is None:
            return self._heads(projected)
        if self.norm_over_width:
            return self._heads(norm(projected))
        normalised: Tensor = norm(self._heads(projected))
        return normalised

    def _rotate(self, x_BSHC: Tensor, rotary: RotaryTables) -> Tensor:
        if self.rotary_dim == self.head_dim:
            return apply_rotary(x_BSHC, rotary, self.interleaved)
        rotated, rest = x_BSHC.split([self.rotary_dim, self.head_dim - self.rotary_dim], dim=-1)
        return torch.cat((apply_rotary(rotated, rotary, self.interleaved), rest), dim=-1)

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (-1, self.head_dim))
        return heads


class MultiHeadLatentAttention(nn.Module):
    """Attention with keys and values expanded from one latent per token (DeepSeek-V2, arXiv 2405.04434, eq. 9-19)."""

    component = "attention"
    recompute_core = False  # see recompute.py

    def __init__(self, spec: MultiHeadLatentAttentionSpec, kernels: Kernels) -> None:
        super().__init__()
        self.spec = spec
        self.kernels: Kernels = kernels
        self.attend: Callable[..., Tensor] = causal_attention  # another function where ranks divide the positions
        self.scale = softmax_scale(spec.rotary, spec.qk_head_dim)
        heads, width = spec.num_attention_heads, spec.hidden_size
        if spec.q_lora_rank is None:
            self.q_proj = Linear(width, heads * spec.qk_head_dim, bias=False)
        else:
            self.q_a_proj = Linear(width, spec.q_lora_rank, bias=spec.bias)
            self.q_a_layernorm = RMSNorm(spec.q_lora_rank, LATENT_NORM_EPS, kernels)
            self.q_b_proj = Linear(spec.q_lora_rank, heads * spec.qk_head_dim, bias=False)
        self.kv_a_proj_with_mqa = Linear(width, spec.kv_lora_rank + spec.qk_rope_head_dim, bias=spec.bias)
        self.kv_a_layernorm = RMSNorm(spec.kv_lora_rank, LATENT_NORM_EPS, kernels)
        self.kv_b_proj = Linear(spec.kv_lora_rank, heads * (spec.qk_nope_head_dim + spec.v_head_dim), bias=False)
        self.o_proj = Linear(heads * spec.v_head_dim, width, bias=spec.bias)

    def forward(self, x_BSD: Tensor, rotary: RotaryTables) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        query = self._query(x_BSD, rotary)
        key, value = self._key_value(x_BSD, rotary)
        attended_BSHC = run(
            self.attend,
            query,
            key,
            value,
            recompute=self.recompute_core,
            scale=self.scale,
            kernels=self.kernels,
        )
        out: Tensor = self.o_proj(attended_BSHC.flatten(2))
        return out

    def _query(self, x_BSD: Tensor, rotary: RotaryTables) -> Tensor:
        spec = self.spec
        if spec.q_lora_rank is None:
            query = self.q_proj(x_BSD)
        else:
            query = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BSD)))
        query_BSHC = query.unflatten(-1, (-1, spec.qk_head_dim))  # heads may be divided over ranks
        own, rotated = query_BSHC.split([spec.qk_nope_head_dim, spec.qk_rope_head_dim], dim=-1)
        return torch.cat((own, apply_rotary(rotated, rotary, spec.rotary.interleaved)), dim=-1)

    def _key_value(self, x_BSD: Tensor, rotary: RotaryTables) -> tuple[Tensor, Tensor]:
        spec = self.spec
        latent_BSR, shared = self.kv_a_proj_with_mqa(x_BSD).split([spec.kv_lora_rank, spec.qk_rope_head_dim], dim=-1)
        expanded = self.kv_b_proj(self.kv_a_layernorm(latent_BSR))
        expanded_BSHC = expanded.unflatten(-1, (-1, spec.qk_nope_head_dim + spec.v_head_dim))
        own, value = expanded_BSHC.split([spec.qk_nope_head_dim, spec.v_head_dim], dim=-1)
        rotated = apply_rotary(shared.unsqueeze(2), rotary, spec.rotary.interleaved)  # one head that all heads share
        key = torch.cat((own, rotated.expand(-1, -1, own.shape[2], -1)), dim=-1)
        return key, value
