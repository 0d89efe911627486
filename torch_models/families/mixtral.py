"""Mixtral (arXiv 2401.04088): Mistral with a mixture of experts in every layer, without shared experts."""

from typing import ClassVar, Literal

from torch_models.fields.family_config import FamilyConfig
from torch_models.fields.shared import gated_mlp, grouped_query_attention, softmax_router
from torch_models.fields.stored_names import StoredName
from torch_models.spec import (
    Epsilon,
    Experts,
    Heads,
    LayerSpec,
    MixtureOfExpertsSpec,
    ModelSpec,
    SequenceLength,
)


class Config(FamilyConfig, frozen=True, kw_only=True):
    """The fields of a `MixtralForCausalLM` config; head and expert counts have no default."""

    num_key_value_heads: Heads
    num_local_experts: Experts
    num_experts_per_tok: Experts
    attention_bias: Literal[False] = False
    sliding_window: SequenceLength | None = None
    rms_norm_eps: Epsilon = 1e-5
    default_rope_theta: ClassVar[float] = 1e6
    stored_names: ClassVar[tuple[StoredName, ...]] = (
        StoredName("block_sparse_moe.gate.weight", "mlp.gate.weight"),
        StoredName("block_sparse_moe.experts.{expert}.w1.weight", "mlp.experts.gate_up_proj", half=0),
        StoredName("block_sparse_moe.experts.{expert}.w3.weight", "mlp.experts.gate_up_proj", half=1),
        StoredName("block_sparse_moe.experts.{expert}.w2.weight", "mlp.experts.down_proj"),
    )


def model_spec(config: Config, name: str) -> ModelSpec:
    """Return the spec of a Mixtral config; all layers are equal."""
    layer = LayerSpec(
        attention=grouped_query_attention(config, window=config.sliding_window),
        feed_forward=MixtureOfExpertsSpec(
            router=softmax_router(config, config.num_local_experts, norm_topk_prob=True),
            expert=gated_mlp(config),
            shared_experts=None,
        ),
        norm_eps=config.rms_norm_eps,
    )
    return config.model_spec(name, [layer] * config.num_hidden_layers)
