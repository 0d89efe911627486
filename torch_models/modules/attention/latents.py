"""Multi-head latent attention. The legend of dimension letters is in layers.py; R is kv_lora_rank."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from torch_models.modules.attention.core import causal_attention
from torch_models.modules.attention.indexer import Indexer
from torch_models.modules.layers import Linear, RMSNorm, RotaryTables, apply_rotary, softmax_scale
from torch_models.modules.recompute import run
from torch_models.spec import Kernels, MultiHeadLatentAttentionSpec

LATENT_NORM_EPS = 1e-6  # of DeepSeek's latent norms, whatever the config's rms_norm_eps


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
        self.indexer = None if spec.indexer is None else Indexer(spec, spec.indexer, kernels)

    def forward(self, x_BSD: Tensor, rotary: RotaryTables) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        query, chosen_BSK = self._query(x_BSD, rotary)
        key, value = self._key_value(x_BSD, rotary)
        attended_BSHC = run(
            self.attend,
            query,
            key,
            value,
            recompute=self.recompute_core,
            scale=self.scale,
            kernels=self.kernels,
            chosen_BSK=chosen_BSK,
        )
        out: Tensor = self.o_proj(attended_BSHC.flatten(2))
        return out

    def _query(self, x_BSD: Tensor, rotary: RotaryTables) -> tuple[Tensor, Tensor | None]:
        """The queries and, with an indexer, the keys that each attends to."""
        spec, chosen_BSK = self.spec, None
        if spec.q_lora_rank is None:
            query = self.q_proj(x_BSD)
        else:
            latent = self.q_a_layernorm(self.q_a_proj(x_BSD))
            if self.indexer is not None:
                chosen_BSK = self.indexer(x_BSD, latent, rotary)
            query = self.q_b_proj(latent)
            del latent
        query_BSHC = query.unflatten(-1, (-1, spec.qk_head_dim))  # heads may be divided over ranks
        own, rotated = query_BSHC.split([spec.qk_nope_head_dim, spec.qk_rope_head_dim], dim=-1)
        return torch.cat((own, apply_rotary(rotated, rotary, spec.rotary.interleaved)), dim=-1), chosen_BSK

    def _key_value(self, x_BSD: Tensor, rotary: RotaryTables) -> tuple[Tensor, Tensor]:
        spec = self.spec
        latent_BSR, shared = self.kv_a_proj_with_mqa(x_BSD).split([spec.kv_lora_rank, spec.qk_rope_head_dim], dim=-1)
        expanded = self.kv_b_proj(self.kv_a_layernorm(latent_BSR))
        expanded_BSHC = expanded.unflatten(-1, (-1, spec.qk_nope_head_dim + spec.v_head_dim))
        own, value = expanded_BSHC.split([spec.qk_nope_head_dim, spec.v_head_dim], dim=-1)
        rotated = apply_rotary(shared.unsqueeze(2), rotary, spec.rotary.interleaved)  # one head that all heads share
        key = torch.cat((own, rotated.expand(-1, -1, own.shape[2], -1)), dim=-1)
        return key, value
