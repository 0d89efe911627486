"""The indexer of sparse attention. The legend of dimension letters is in layers.py; R is q_lora_rank."""

import torch
from torch import Tensor, nn

from torch_models.modules.autocast import without_autocast
from torch_models.modules.kernels.index_scores import index_scores
from torch_models.modules.layers import LayerNorm, Linear, RotaryTables, apply_rotary
from torch_models.spec import IndexerSpec, Kernels, MultiHeadLatentAttentionSpec

KEY_NORM_EPS = 1e-6


class IndexerLinear(Linear):
    """A projection of the indexer, which recipes in fp8 leave in 16 bits."""

    quantised = ()


class Indexer(nn.Module):
    """Chooses the keys that each query attends to (DeepSeek-V3.2, arXiv 2512.02556, §2.1, eq. 1).

    A choice has no gradient: the loss of the language model does not train the indexer. DeepSeek trains it by a loss of
    its own, which is not part of this project. Its parameters therefore are frozen, and it runs without gradients.
    All of them are in the model's dtype, as in transformers, which keeps `weights_proj` of a model in fp16 in fp32.
    """

    component = "indexer"

    def __init__(self, attention: MultiHeadLatentAttentionSpec, spec: IndexerSpec, kernels: Kernels) -> None:
        super().__init__()
        assert attention.q_lora_rank is not None
        self.spec = spec
        self.kernels: Kernels = kernels
        self.rotary_dim = attention.rotary.dim
        width = attention.hidden_size
        self.wq_b = IndexerLinear(attention.q_lora_rank, spec.num_heads * spec.head_dim, bias=False)
        self.wk = IndexerLinear(width, spec.head_dim, bias=False)
        self.k_norm = LayerNorm(spec.head_dim, KEY_NORM_EPS)
        self.weights_proj = IndexerLinear(width, spec.num_heads, bias=False)
        self.requires_grad_(False)

    def forward(self, x_BSD: Tensor, query_latent_BSR: Tensor, rotary: RotaryTables) -> Tensor:
        """Return the positions of min(top_k, S) keys for each query, (B, S, top_k) in int32.

        Where a query sees fewer keys, others, after it, are among them; causality hides these from attention.
        """
        with torch.no_grad():
            scores_BSS = self._scores(x_BSD, query_latent_BSR, rotary)
            chosen: Tensor = scores_BSS.topk(min(self.spec.top_k, scores_BSS.shape[-1]), dim=-1).indices.to(torch.int32)
            return chosen

    def _scores(self, x_BSD: Tensor, query_latent_BSR: Tensor, rotary: RotaryTables) -> Tensor:
        query_BSHC = self._rotate(self.wq_b(query_latent_BSR).unflatten(-1, (-1, self.spec.head_dim)), rotary)
        key_BSC = self._rotate(self.k_norm(self.wk(x_BSD)).unsqueeze(2), rotary).squeeze(2)
        weights_BSH = self.weights_proj(x_BSD)
        scale: float = (self.spec.head_dim * self.spec.num_heads) ** -0.5
        if self.kernels == "fused":
            scores: Tensor = index_scores(query_BSHC, key_BSC, weights_BSH, scale)
            return scores
        return eager_index_scores(query_BSHC, key_BSC, weights_BSH, scale)

    def _rotate(self, x_BSHC: Tensor, rotary: RotaryTables) -> Tensor:
        if self.rotary_dim == self.spec.head_dim:
            return apply_rotary(x_BSHC, rotary, self.spec.interleaved)
        rotated, rest = x_BSHC.split([self.rotary_dim, self.spec.head_dim - self.rotary_dim], dim=-1)
        return torch.cat((apply_rotary(rotated, rotary, self.spec.interleaved), rest), dim=-1)


def eager_index_scores(query_BSHC: Tensor, key_BSC: Tensor, weights_BSH: Tensor, scale: float) -> Tensor:
    """`index_scores` step by step, with the scores of every head in memory, (B, S H, S) in fp32."""
    precision = torch.float64 if query_BSHC.dtype == torch.float64 else torch.float32
    batch, length, heads, _ = query_BSHC.shape
    with without_autocast(query_BSHC.device):
        scores = torch.bmm(query_BSHC.to(precision).flatten(1, 2), key_BSC.to(precision).transpose(1, 2))
        scores = (scores * scale).relu()
        weights = weights_BSH.to(precision).view(batch * length, 1, heads)
        summed = torch.bmm(weights, scores.view(batch * length, heads, length)).view(batch, length, length)
        del scores, weights
    hidden = torch.ones(length, length, dtype=torch.bool, device=summed.device).triu(1)
    return summed.masked_fill(hidden, float("-inf"))
