"""Grouped-query attention. The legend of dimension letters is in layers.py."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from torch_models.first_values import OwnFirstValues
from torch_models.modules.attention.core import causal_attention
from torch_models.modules.layers import (
    Linear,
    RMSNorm,
    RotaryTables,
    UnweightedRMSNorm,
    apply_rotary,
    softmax_scale,
)
from torch_models.modules.recompute import run
from torch_models.spec import GroupedQueryAttentionSpec, Kernels, TemperatureSpec


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
        self.rotary_dim = spec.rotary.dim if spec.rotary else 0
        self.interleaved = spec.rotary is not None and spec.rotary.interleaved
        self.window = spec.window
        self.chunk = spec.chunk
        self.temperature = spec.temperature
        self.softcap = spec.logit_softcap
        self.sinks = nn.Parameter(torch.empty(spec.num_attention_heads)) if spec.sinks else None
        self.scale = softmax_scale(spec.rotary, spec.scale_channels or spec.head_dim)
        query_width = spec.num_attention_heads * spec.head_dim
        key_value_width = spec.num_key_value_heads * spec.head_dim
        self.q_proj = Linear(spec.hidden_size, query_width, bias=spec.qkv_bias)
        self.k_proj = Linear(spec.hidden_size, key_value_width, bias=spec.qkv_bias)
        if not spec.keys_as_values:
            self.v_proj = Linear(spec.hidden_size, key_value_width, bias=spec.qkv_bias)
        self.keys_as_values = spec.keys_as_values
        self.o_proj = Linear(query_width, spec.hidden_size, bias=spec.output_bias)
        self.norm_over_width = spec.query_key_norm == "width"
        self.q_norm = self.k_norm = None
        self.qk_norm = UnweightedRMSNorm(spec.norm_eps, kernels) if spec.query_key_norm == "l2" else None
        if spec.query_key_norm in ("head", "width"):
            widths = (query_width, key_value_width) if self.norm_over_width else (spec.head_dim, spec.head_dim)
            offset = spec.norm_unit_offset
            self.q_norm, self.k_norm = (RMSNorm(each, spec.norm_eps, kernels, unit_offset=offset) for each in widths)
        self.v_norm = UnweightedRMSNorm(spec.norm_eps, kernels) if spec.value_norm else None

    def forward(self, x_BSD: Tensor, rotary: RotaryTables) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        query = self._heated(self._normed(self._rotate(self._project(self.q_proj, self.q_norm, x_BSD), rotary)))
        key, value = self._key_value(x_BSD, rotary)
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
            chunk=self.chunk,
        )
        out: Tensor = self.o_proj(attended_BSHC.flatten(2))
        return out

    def _key_value(self, x_BSD: Tensor, rotary: RotaryTables) -> tuple[Tensor, Tensor]:
        """Keys and values by head, (B, S, G, C) each."""
        if self.keys_as_values:
            projected = self.k_proj(x_BSD)
            key = self._rotate(self._by_head(projected, self.k_norm), rotary)
            value = self._heads(projected)
        else:
            key = self._normed(self._rotate(self._project(self.k_proj, self.k_norm, x_BSD), rotary))
            value = self._heads(self.v_proj(x_BSD))
        return key, value if self.v_norm is None else self.v_norm(value)

    def _project(self, projection: nn.Module, norm: nn.Module | None, x_BSD: Tensor) -> Tensor:
        """Return queries or keys by head, (B, S, heads, C), normalised if `norm` is given."""
        return self._by_head(projection(x_BSD), norm)

    def _by_head(self, projected: Tensor, norm: nn.Module | None) -> Tensor:
        if norm is None:
            return self._heads(projected)
        if self.norm_over_width:
            return self._heads(norm(projected))
        normalised: Tensor = norm(self._heads(projected))
        return normalised

    def _rotate(self, x_BSHC: Tensor, rotary: RotaryTables) -> Tensor:
        if self.rotary_dim in (0, self.head_dim):
            return apply_rotary(x_BSHC, rotary, self.interleaved)
        rotated, rest = x_BSHC.split([self.rotary_dim, self.head_dim - self.rotary_dim], dim=-1)
        return torch.cat((apply_rotary(rotated, rotary, self.interleaved), rest), dim=-1)

    def _normed(self, x_BSHC: Tensor) -> Tensor:
        """Normalise queries or keys that are rotated, if the layer does."""
        if self.qk_norm is None:
            return x_BSHC
        normed: Tensor = self.qk_norm(x_BSHC)
        return normed

    def _heated(self, query_BSHC: Tensor) -> Tensor:
        """Multiply queries by the factors of their positions, if the layer has any."""
        if self.temperature is None:
            return query_BSHC
        return query_BSHC * query_factors(self.temperature, query_BSHC).view(-1, 1, 1)

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (-1, self.head_dim))
        return heads


def query_factors(spec: TemperatureSpec, query_BSHC: Tensor) -> Tensor:
    """The factor of the queries at each position, computed in fp32 and returned in the dtype of the queries, (S,)."""
    positions = torch.arange(1, query_BSHC.shape[1] + 1, device=query_BSHC.device, dtype=torch.float32)
    return ((positions / spec.floor_scale).floor().log1p() * spec.scale + 1).to(query_BSHC.dtype)
