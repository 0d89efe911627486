"""Specs of attention: grouped queries, latents; and of rotary position embedding. Torch-free."""

from typing import Literal

from torch_models.errors import ConfigError
from torch_models.rope_scaling import RopeScaling
from torch_models.spec.base import Spec, check_width

# Channels of a head: torch's check_head_dim_size_flash (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp).
MAX_FLASH_CHANNELS = 256


class RotarySpec(Spec, frozen=True, kw_only=True):
    """Rotary position embedding over the `dim` rotated channels of each head; it has no parameters."""

    dim: int
    theta: float
    scaling: RopeScaling | None = None
    interleaved: bool = False  # pairs (0, 1), (2, 3), … as DeepSeek stores them, instead of (0, dim/2), …
    scores_scaled: bool = False  # DeepSeek's YaRN also scales the attention scores, by mscale_all_dim

    def __post_init__(self) -> None:
        assert self.dim > 0 and self.dim % 2 == 0


class TemperatureSpec(Spec, frozen=True, kw_only=True):
    """Queries grow with their position: 1 + scale * log(1 + floor(position / floor_scale)), positions from 1.

    Llama-4 sharpens the softmax of long sequences so in layers without positions (after Nakanishi 2025, arXiv
    2501.19399, whose factor is a learned multiple of log(position)).
    """

    floor_scale: int
    scale: float

    def __post_init__(self) -> None:
        assert self.floor_scale > 0


class GroupedQueryAttentionSpec(Spec, frozen=True, kw_only=True, tag="grouped_query_attention"):
    """Multi-head attention whose query heads share key/value heads in equal groups (Ainslie et al. 2023).

    The first `rotary.dim` channels of each head are rotated; a layer without `rotary` encodes no positions (NoPE,
    Kazemnejad et al. 2023, arXiv 2305.19466). `query_key_norm` normalises queries and keys before the rotation: each
    ``head`` separately (Qwen3), or all heads of a token together, over the full ``width`` (OLMo-2). Llama-4's ``l2``
    divides each head by its root mean square after the rotation, and has no weights. With `keys_as_values` there is no
    value projection: the values are the keys before norm and rotation. `value_norm` normalises the values of each head,
    without a weight (Gemma-4).
    """

    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rotary: RotarySpec | None
    qkv_bias: bool = False
    output_bias: bool = False
    query_key_norm: Literal["head", "width", "l2"] | None = None
    norm_eps: float = 1e-6  # of the query, key and value norms
    norm_unit_offset: bool = False  # those of queries and keys, by head, multiply by 1 + weight
    value_norm: bool = False
    keys_as_values: bool = False
    window: int | None = None  # a position attends to itself and to the window - 1 positions before it
    chunk: int | None = None  # a position attends to itself and to those before it in its chunk of so many positions
    temperature: TemperatureSpec | None = None
    logit_softcap: float | None = None  # scores become cap * tanh(scores / cap)
    sinks: bool = False  # one learned score per head, which enters the softmax but has no value vector
    scale_channels: int | None = None  # scores are divided by the square root of this instead of head_dim

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                "num_attention_heads",
                self.num_attention_heads,
                f"num_attention_heads ({self.num_attention_heads}) must be divisible by "
                f"num_key_value_heads ({self.num_key_value_heads})",
            )
        check_width("num_attention_heads * head_dim", self.num_attention_heads * self.head_dim)
        assert not self.norm_unit_offset or self.query_key_norm == "head"
        assert not self.keys_as_values or (self.value_norm and self.query_key_norm == "head" and self.rotary)
        assert self.rotary is None or self.rotary.dim <= self.head_dim
        assert self.rotary is not None or self.query_key_norm != "l2", "a norm of what is rotated"
        assert self.window is None or self.chunk is None, "a layer has a window or chunks"

    @property
    def needs_own_kernel(self) -> bool:
        """Whether its core has what torch's fused kernels lack.

        That is a window, chunks, soft-capped scores, sinks, or heads of more channels than flash attention takes.
        """
        lacking = self.sinks or (self.window, self.chunk, self.logit_softcap) != (None, None, None)
        return lacking or self.head_dim > MAX_FLASH_CHANNELS


class IndexerSpec(Spec, frozen=True, kw_only=True):
    """The indexer of sparse attention: each query attends to `top_k` keys (DeepSeek-V3.2, arXiv 2512.02556, §2.1).

    The score of a key is sum_h w_h relu(q_h k): queries of `num_heads` heads are projected from the query latent, one
    key a token and the weights w from the hidden state. The first `rotary.dim` channels of queries and key are rotated,
    with the tables of the attention.
    """

    num_heads: int
    head_dim: int
    top_k: int
    interleaved: bool  # the pairs of channels that are rotated, as in `RotarySpec`


class MultiHeadLatentAttentionSpec(Spec, frozen=True, kw_only=True, tag="multi_head_latent_attention"):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, §2.1).

    Keys and values are expanded from one latent of width `kv_lora_rank` per token. Queries are expanded from a latent
    of width `q_lora_rank`, or projected directly from the hidden state if that is None. The key of a head consists of
    `qk_nope_head_dim` channels of that head and `qk_rope_head_dim` rotated channels that all heads share.

    With an `indexer` a query attends to the keys that it chooses, of those that causality lets it see.
    """

    hidden_size: int
    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rotary: RotarySpec
    bias: bool = False  # of the projections from and to the hidden state
    indexer: IndexerSpec | None = None

    def __post_init__(self) -> None:
        check_width(
            "num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim)", self.num_attention_heads * self.qk_head_dim
        )
        check_width(
            "num_attention_heads * (qk_nope_head_dim + v_head_dim)",
            self.num_attention_heads * (self.qk_nope_head_dim + self.v_head_dim),
        )
        assert self.rotary.dim == self.qk_rope_head_dim
        if self.indexer is not None:
            self._check_indexer(self.indexer)

    def _check_indexer(self, indexer: IndexerSpec) -> None:
        if self.q_lora_rank is None:
            raise ConfigError("q_lora_rank", None, "must be a number: the indexer projects queries from their latent")
        if indexer.head_dim < self.qk_rope_head_dim:
            rule = f"must be at least qk_rope_head_dim ({self.qk_rope_head_dim}), the channels that are rotated"
            raise ConfigError("index_head_dim", indexer.head_dim, rule)
        check_width("index_n_heads * index_head_dim", indexer.num_heads * indexer.head_dim)

    @property
    def qk_head_dim(self) -> int:
        """Channels of one query or key head."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim


AttentionSpec = GroupedQueryAttentionSpec | MultiHeadLatentAttentionSpec
