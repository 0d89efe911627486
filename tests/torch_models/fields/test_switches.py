"""Fields that say which parts a model has, in native families that do not declare them: true, or refused."""

from typing import Any

import pytest

from tests.shrunken import (
    DEEPSEEK_V3,
    GEMMA,
    GEMMA2,
    GPT_OSS,
    LLAMA,
    MINIMAX_M2,
    MISTRAL,
    MIXTRAL,
    OLMO2,
    QWEN2,
    QWEN2_MOE,
    QWEN3_MOE,
)
from torch_models.errors import ConfigError
from torch_models.fields.architecture_fields import ARCHITECTURE_FIELDS
from torch_models.fields.config import spec_from_fields
from torch_models.fields.switches import INVERTED, SWITCHES, Part, check_switches, parts_of_spec, statement
from torch_models.spec import GatedMLPSpec

TRUE_OF: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (LLAMA, {"use_mlp_bias": False, "qkv_bias": False, "use_bias": False, "add_bias_linear": False, "no_bias": True}),
    (LLAMA, {"gated_mlp": True, "use_glu": True, "pre_norm": True, "do_layer_norm_before": True, "post_norm": False}),
    (LLAMA, {"use_rms_norm": True, "elementwise_affine": True, "norm_type": "rms_norm", "lm_head_bias": False}),
    (LLAMA, {"num_experts": 0, "n_shared_experts": 0, "mlp_only_layers": [], "is_moe": False, "use_mla": False}),
    (LLAMA, {"rotary": True, "alibi": False, "learned_pos_emb": False, "position_embedding_type": "rope"}),
    (LLAMA, {"parallel_attn": False, "attention_sinks": False, "multi_query": False, "use_embedding_sharing": False}),
    (MIXTRAL, {"first_k_dense_replace": 0, "n_shared_experts": 0, "use_moe": True, "shared_intermediate_size": 0}),
    (DEEPSEEK_V3, {"use_mla": True, "use_shared_expert": True, "use_bias": False}),
    (GPT_OSS, {"attention_sinks": True, "mlp_bias": True, "use_bias": True, "no_bias": False, "use_moe": True}),
    (QWEN2, {"add_qkv_bias": True, "mlp_bias": False, "attention_out_bias": False}),
    (OLMO2, {"pre_norm": False, "post_norm": True, "qk_norm": True}),
    (QWEN2_MOE, {"use_qkv_bias": True, "use_shared_expert": True, "use_qk_norm": False, "first_k_dense_replace": 0}),
    (MINIMAX_M2, {"use_qk_norm": True, "qk_norm_type": "per_layer", "shared_intermediate_size": 0, "qkv_bias": False}),
    (GEMMA2, {"use_sliding_window": True, "pre_norm": True, "use_post_norm": True, "share_embeddings": True}),
]


@pytest.mark.parametrize(("fields", "more"), TRUE_OF, ids=lambda value: "-".join(map(str, value))[:60])
def test_what_is_true_of_the_model_is_listed(fields: dict[str, Any], more: dict[str, Any]) -> None:
    listed = spec_from_fields(fields | more, "x").passed_over_fields
    assert {entry.partition(" = ")[0] for entry in listed} >= more.keys()
    assert [entry for entry in listed if entry.partition(" = ")[0] in more and "(is off)" in entry] == []


FALSE_OF: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (LLAMA, {"no_bias": False, "gated_mlp": False, "use_gated_mlp": False, "use_glu": False, "use_swiglu": False}),
    (LLAMA, {"pre_norm": False, "do_layer_norm_before": False, "use_rms_norm": False, "elementwise_affine": False}),
    (LLAMA, {"rotary": False, "use_rope": False, "final_norm": False, "remove_final_layer_norm": True, "alibi": True}),
    (LLAMA, {"attention_sinks": True, "norm_type": "layer_norm", "mlp_type": "default", "use_moe": True}),
    (LLAMA, {"position_embedding_type": "absolute", "causal": False, "bidirectional": True, "use_mla": True}),
    (QWEN2, {"use_bias": False, "use_attn_bias": False, "add_bias_linear": False, "use_linear_bias": True}),
    (GPT_OSS, {"use_bias": False, "use_attn_bias": False, "add_bias_linear": False, "mlp_bias": False}),
    (GPT_OSS, {"attention_sinks": False, "use_attention_sinks": False, "no_bias": True}),
    (DEEPSEEK_V3, {"use_mla": False, "use_shared_expert": False, "num_shared_experts": 0, "use_moe": False}),
    (QWEN3_MOE, {"use_qk_norm": False, "use_shared_expert": True, "enable_moe_block": False}),
    (MIXTRAL, {"moe_num_experts": 0, "num_experts_per_token": 0, "moe_layer_freq": 0, "moe_layers": []}),
    (MISTRAL, {"use_sliding_window": False, "swa_layers": [], "attention_window_size": 0}),
    (GEMMA2, {"use_sliding_window": False, "use_post_norm": False, "tie_embeddings": False}),
    (OLMO2, {"pre_norm": True, "use_post_norm": False}),
    (QWEN2_MOE, {"attention_bias": False, "num_shared_experts": 0, "use_shared_expert": False, "use_qk_norm": True}),
    (MINIMAX_M2, {"use_qk_norm": False, "shared_intermediate_size": 64, "num_nextn_predict_layers": 1}),
]
EACH_FALSE = [(fields, field, value) for fields, more in FALSE_OF for field, value in more.items()]


@pytest.mark.parametrize(
    ("fields", "field", "value"),
    EACH_FALSE,
    ids=[f"{fields.get('model_type')}-{name}" for fields, name, _ in EACH_FALSE],
)
def test_what_is_false_of_the_model_is_refused_on_or_off(fields: dict[str, Any], field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{field} = ") as caught:
        spec_from_fields(fields | {field: value}, "x")
    assert "ignore_fields" not in str(caught.value)


def test_a_part_of_some_layers_only_agrees_with_no_field() -> None:
    with pytest.raises(ConfigError, match="use_bias = false: speaks of biases of all projections, which the model"):
        spec_from_fields(QWEN2 | {"use_bias": False}, "x")


def test_every_part_is_told_of_every_spec_and_every_field_speaks_of_one() -> None:
    parts = parts_of_spec(spec_from_fields(dict(LLAMA), "x"))
    assert parts.keys() == set(Part)
    for field, part in {**SWITCHES, **INVERTED}.items():
        off, on = statement(field, False), statement(field, True)
        assert off is not None
        assert on is not None
        assert (off.part, on.part, off.has_it is not on.has_it) == (part, part, True)
        assert statement(field, None) is None
        with pytest.raises(ConfigError, match=f"{field} = .*: the model is built"):
            check_switches({field: not on.has_it if parts[part] else on.has_it}, parts)


def test_a_field_that_is_off_in_an_architecture_that_the_model_has_is_refused() -> None:
    """Where no comparison is made, a declared field of the same meaning decides."""
    assert "use_mtp" not in SWITCHES
    assert ARCHITECTURE_FIELDS["use_mtp"] == ARCHITECTURE_FIELDS["num_nextn_predict_layers"]
    on, off = DEEPSEEK_V3 | {"num_nextn_predict_layers": 1}, DEEPSEEK_V3 | {"num_nextn_predict_layers": 0}
    spec_from_fields(off | {"use_mtp": False}, "x")
    with pytest.raises(ConfigError, match="use_mtp = false: describes multi-token prediction, as num_nextn_predict"):
        spec_from_fields(on | {"use_mtp": False}, "x")


def test_the_first_files_of_gemma_name_another_activation() -> None:
    spec = spec_from_fields(GEMMA | {"hidden_act": "gelu", "hidden_activation": "gelu"}, "x")
    mlp = spec.layers[0].feed_forward
    assert isinstance(mlp, GatedMLPSpec)
    assert mlp.activation == "gelu_pytorch_tanh"
    said = "hidden_act = 'gelu' (the published models are meant to have gelu_pytorch_tanh, as transformers reads it)"
    assert {said, "hidden_activation = 'gelu' (transformers reads hidden_act alone)"} <= set(spec.passed_over_fields)
