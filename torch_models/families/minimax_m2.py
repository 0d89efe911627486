"""MiniMax-M2, M2.1 and M2.5 (config.json and modelling code of MiniMaxAI/MiniMax-M2).

Grouped-query attention with norms of queries and keys over all heads together, and rotation of a part of each head; in
every layer routed experts with DeepSeek-V3's sigmoid router and correction bias, without groups or shared experts.
"""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from torch_models.errors import ConfigError
from torch_models.fields.family_config import FamilyConfig
from torch_models.fields.rope import rotary_share
from torch_models.fields.shared import gated_mlp, grouped_query_attention
from torch_models.fields.stored_names import StoredName
from torch_models.spec import (
    Experts,
    Heads,
    LayerSpec,
    MixtureOfExpertsSpec,
    ModelSpec,
    RouterSpec,
    Share,
    Width,
)

One = Annotated[float, Meta(ge=1, le=1)]
WITHOUT_MTP = "neither the published weights nor transformers have these modules"


class Config(FamilyConfig, frozen=True, kw_only=True):
    """The fields of a `MiniMaxM2ForCausalLM` config; fields that determine a shape have no default."""

    num_key_value_heads: Heads
    head_dim: Width
    num_local_experts: Experts
    num_experts_per_tok: Experts
    attention_bias: Literal[False] = False
    rotary_dim: Width | None = None
    partial_rotary_factor: Share | None = None
    scoring_func: Literal["sigmoid"] = "sigmoid"
    # Of the code from which MiniMax-M2's came, or of parts that it has not.
    layernorm_full_attention_beta: One | None = None
    layernorm_linear_attention_beta: One | None = None
    layernorm_mlp_beta: One | None = None
    mlp_intermediate_size: Width | None = None
    shared_moe_mode: str | None = None
    use_routing_bias: bool | None = None
    use_mtp: bool | None = None
    num_mtp_modules: Annotated[int, Meta(ge=0, le=64)] | None = None
    mtp_transformer_layers: Annotated[int, Meta(ge=0, le=64)] | None = None
    default_rope_theta: ClassVar[float] = 5e6
    architecture: ClassVar[str] = "MiniMaxM2ForCausalLM"
    stored_names: ClassVar[tuple[StoredName, ...]] = (
        StoredName("block_sparse_moe.gate.weight", "mlp.gate.weight"),
        StoredName("block_sparse_moe.e_score_correction_bias", "mlp.e_score_correction_bias"),
        StoredName("block_sparse_moe.experts.{expert}.w1.weight", "mlp.experts.gate_up_proj", half=0),
        StoredName("block_sparse_moe.experts.{expert}.w3.weight", "mlp.experts.gate_up_proj", half=1),
        StoredName("block_sparse_moe.experts.{expert}.w2.weight", "mlp.experts.down_proj"),
    )

    def passed_over(self) -> Iterator[tuple[str, str]]:
        """Yield the fields of parts that no published code or weights have."""
        for name in ("full_attention", "linear_attention", "mlp"):
            yield f"layernorm_{name}_beta", "as without it"
        yield "mlp_intermediate_size", "no layer is dense"
        yield "shared_moe_mode", "there are no shared experts"
        yield "use_routing_bias", "as the model is built"
        for name in ("use_mtp", "num_mtp_modules", "mtp_transformer_layers"):
            yield name, WITHOUT_MTP


def model_spec(config: Config, name: str) -> ModelSpec:
    """Return the spec of a MiniMax-M2 config; all layers are equal.

    `rotary_dim` is another way to give `partial_rotary_factor`; without both, every channel of a head is rotated.
    Raises `ConfigError` if the two differ, if a head has fewer channels, or if the file denies the correction bias.
    """
    if config.use_routing_bias is False:
        rule = "the model is built with the router's correction bias, whatever this field says"
        raise ConfigError("use_routing_bias", False, rule)
    if config.rotary_dim is not None and config.rotary_dim > config.head_dim:
        raise ConfigError("rotary_dim", config.rotary_dim, f"must be at most head_dim ({config.head_dim})")
    given = 1.0 if config.rotary_dim is None else config.rotary_dim / config.head_dim
    share = rotary_share(config, given)
    if config.rotary_dim not in (None, int(config.head_dim * share)):
        rule = f"partial_rotary_factor ({share}) of head_dim ({config.head_dim}) is {int(config.head_dim * share)}"
        raise ConfigError("rotary_dim", config.rotary_dim, rule)
    router = RouterSpec(
        hidden_size=config.hidden_size,
        num_experts=config.num_local_experts,
        top_k=config.num_experts_per_tok,
        scoring="sigmoid",
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=1.0,
        correction_bias=True,
        correction_bias_at="mixture",
    )
    layer = LayerSpec(
        attention=grouped_query_attention(config, rotary_share=share, query_key_norm="width"),
        feed_forward=MixtureOfExpertsSpec(router=router, expert=gated_mlp(config), shared_experts=None),
        norm_eps=config.rms_norm_eps,
    )
    return config.model_spec(name, [layer] * config.num_hidden_layers)
