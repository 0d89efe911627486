"""The fields of multi-head latent attention, which the families of DeepSeek-V2 and V3, Kimi-K2 and GLM-5 share."""

from typing import Annotated

from msgspec import Meta

from torch_models.errors import ConfigError
from torch_models.fields.family_config import FamilyConfig
from torch_models.fields.rope import rotary_spec
from torch_models.spec import MAX_WIDTH, IndexerSpec, MultiHeadLatentAttentionSpec, Width


class LatentAttentionConfig(FamilyConfig, frozen=True, kw_only=True):
    """The fields of the attention; fields that determine a shape have no default."""

    q_lora_rank: Width | None
    kv_lora_rank: Width
    qk_nope_head_dim: Width
    qk_rope_head_dim: Width
    v_head_dim: Annotated[int, Meta(ge=2, le=MAX_WIDTH)]  # one channel is too small for a head
    qk_head_dim: Width | None = None  # transformers writes this and head_dim, both derived, into the files it saves
    rope_interleave: bool = True


def latent_attention(config: LatentAttentionConfig, indexer: IndexerSpec | None = None) -> MultiHeadLatentAttentionSpec:
    """Return the spec of the attention; raise `ConfigError` if the config has a derived size that does not agree."""
    heads = config.num_attention_heads
    whole = config.qk_nope_head_dim + config.qk_rope_head_dim
    derived = (
        ("num_key_value_heads", config.num_key_value_heads, heads, "num_attention_heads: every head has its own key"),
        ("qk_head_dim", config.qk_head_dim, whole, "qk_nope_head_dim + qk_rope_head_dim"),
    )
    for field, given, expected, meaning in derived:
        if given not in (None, expected):
            raise ConfigError(field, given, f"must be {expected}, {meaning}")
    if config.head_dim not in (None, config.qk_rope_head_dim, whole, config.v_head_dim):
        rule = f"must be {config.qk_rope_head_dim}, qk_rope_head_dim, or the channels of a query or a value"
        raise ConfigError("head_dim", config.head_dim, rule)
    return MultiHeadLatentAttentionSpec(
        hidden_size=config.hidden_size,
        num_attention_heads=heads,
        q_lora_rank=config.q_lora_rank,
        kv_lora_rank=config.kv_lora_rank,
        qk_nope_head_dim=config.qk_nope_head_dim,
        qk_rope_head_dim=config.qk_rope_head_dim,
        v_head_dim=config.v_head_dim,
        rotary=rotary_spec(
            config,
            config.qk_rope_head_dim,
            size="qk_rope_head_dim",
            interleaved=config.rope_interleave,
            scores_scaled=True,
        ),
        bias=config.attention_bias,
        indexer=indexer,
    )
