"""Bytes of the KV cache per token, in closed form: the keys and values of every layer, which decoding keeps.

Torch-free, one formula per attention spec. The cache of a layer with a window stops growing at the window's size, that
of a layer with chunks at a chunk's; up to that size each token takes the bytes given here. Sparse attention keeps all
keys, as a later query may choose any of them.
"""

from functools import singledispatch

from torch_models.spec import AttentionSpec, GroupedQueryAttentionSpec, ModelSpec, MultiHeadLatentAttentionSpec

BYTES_PER_NUMBER = 2  # bfloat16


@singledispatch
def cached_numbers(spec: AttentionSpec) -> int:
    """Return how many numbers one layer caches per token."""
    raise AssertionError(f"no KV cache formula for {type(spec).__name__}")


@cached_numbers.register
def _(spec: GroupedQueryAttentionSpec) -> int:
    """A key and a value of head_dim for each of G key/value heads (Ainslie et al. 2023, arXiv 2305.13245, §2)."""
    return 2 * spec.num_key_value_heads * spec.head_dim


@cached_numbers.register
def _(spec: MultiHeadLatentAttentionSpec) -> int:
    """The latent and the rotated channels that all heads share (DeepSeek-V2, arXiv 2405.04434, §2.1.4, table 1).

    With an indexer, the one key a token that it scores too (DeepSeek-V3.2, arXiv 2512.02556, §2.1).
    """
    return spec.kv_lora_rank + spec.qk_rope_head_dim + (0 if spec.indexer is None else spec.indexer.head_dim)


def kv_cache_bytes_per_token(spec: ModelSpec) -> int:
    """Return the bytes per token of all layers of the main model, in bfloat16."""
    return BYTES_PER_NUMBER * sum(cached_numbers(layer.attention) * count for layer, count in spec.layer_groups())
