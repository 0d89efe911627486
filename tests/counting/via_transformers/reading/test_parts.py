"""Fields that say which parts a model has, in families that go through transformers: true, or refused."""

from typing import Any

import pytest

from counting.analysis import analyze
from counting.setup import Setup
from counting.via_transformers.discover import discover, load_code_of
from counting.via_transformers.quiet import quiet
from counting.via_transformers.reading.config import read_foreign
from counting.via_transformers.reading.parts import parts_of_model
from tests.foreign_families import FAMILIES, GPT2, SMALL, without
from tests.shrunken import FAMILIES as NATIVE
from torch_models.errors import ConfigError
from torch_models.fields.config import ForeignConfig, spec_from_fields
from torch_models.fields.switches import Part, parts_of_spec

BARE = without(SMALL, "num_key_value_heads")
PHI, GPT_NEOX, STARCODER2, COHERE, GRANITE = (
    {"model_type": name, **fields}
    for name, fields in {
        "phi": BARE,
        "gpt_neox": BARE,
        "starcoder2": SMALL,
        "cohere": SMALL,
        "granite": SMALL,
    }.items()
)
GPTJ: dict[str, Any] = {"model_type": "gptj", **GPT2, "rotary_dim": 8}
BLOOM, FALCON, COHERE2, OLMOE, MOE_LITE = (
    {"model_type": name, **FAMILIES[name][0]} for name in ("bloom", "falcon", "cohere2", "olmoe", "glm4_moe_lite")
)
OF_GPT2: dict[str, Any] = {"model_type": "gpt2", **GPT2}
DOTS1: dict[str, Any] = {"model_type": "dots1", **SMALL, "n_routed_experts": 8, "num_experts_per_tok": 2}
DOTS1 |= {"moe_intermediate_size": 24, "n_shared_experts": 1, "first_k_dense_replace": 1}
AFMOE: dict[str, Any] = {"model_type": "afmoe", **SMALL, "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2}
AFMOE |= {"moe_intermediate_size": 24, "num_dense_layers": 1}
JAMBA: dict[str, Any] = {"model_type": "jamba", **SMALL, "num_experts": 4, "mamba_d_state": 4, "attn_layer_offset": 1}
JAMBA |= {"attn_layer_period": 2, "mamba_dt_rank": 4}
FALCON_H1: dict[str, Any] = {"model_type": "falcon_h1", **SMALL, "mamba_d_ssm": 64, "mamba_d_state": 8}
FALCON_H1 |= {"mamba_d_head": 16, "mamba_n_heads": 4, "mamba_n_groups": 1}
LFM2: dict[str, Any] = {"model_type": "lfm2", **SMALL, "full_attn_idxs": [1], "block_auto_adjust_ff_dim": False}
SHORT = Setup(sequence_length=32)

TRUE_OF: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (OF_GPT2, {"attention_bias": True, "use_bias": True, "no_bias": False, "gated_mlp": False, "lm_head_bias": False}),
    (
        OF_GPT2,
        {"rotary": False, "position_embedding_type": "absolute", "hidden_act": "gelu_new", "use_rms_norm": False},
    ),
    (PHI, {"lm_head_bias": True, "use_parallel_residual": True, "use_rotary_pos_emb": True, "activation": "gelu"}),
    (GPTJ, {"lm_head_bias": True, "parallel_attn": True, "rotary": True}),
    (STARCODER2, {"bias": True, "norm_type": "layer_norm", "mlp_type": "default", "parallel_block": False}),
    (COHERE, {"use_parallel_block": True, "qk_norm": False, "tie_embeddings": True, "use_swiglu": True}),
    (COHERE2, {"layer_switch": 4, "order_of_interleaved_layers": "local_attn_first"}),
    (GRANITE, {"use_attn_bias": False, "use_rope": True, "activation": "swiglu", "n_shared_experts": 0}),
    (BLOOM, {"use_alibi": True, "use_rope": False, "final_norm": True}),
    (FALCON, {"use_parallel_residual": True, "mlp_bias": False, "no_bias": True}),
    (DOTS1, {"qkv_bias": False, "use_shared_expert": True}),
    (OLMOE, {"num_shared_experts": 0, "first_k_dense_replace": 0, "use_qk_norm": True, "use_moe": True}),
    (MOE_LITE, {"use_mla": True, "use_qk_norm": False, "use_shared_experts": True}),
    (AFMOE, {"attention_gate": True, "qk_norm": True}),
    (GRANITE, {"normalization_function": "rmsnorm", "gated_linear_unit": True, "mamba_use_mlp": True}),
    (MOE_LITE, {"attention_method": "MLA"}),
    (JAMBA, {"mamba_inner_layernorms": True}),
    (FALCON_H1, {"mamba_use_mlp": True}),
    (LFM2, {"block_use_swiglu": True, "use_pos_enc": True, "block_dim": 64, "conv_dim": 64, "conv_dim_out": 64}),
]


@pytest.mark.parametrize(("fields", "more"), TRUE_OF, ids=lambda value: "-".join(map(str, value.values()))[:60])
def test_what_is_true_of_the_model_is_listed(fields: dict[str, Any], more: dict[str, Any]) -> None:
    with_more, plain = analyze(fields | more, SHORT, step=False), analyze(fields, SHORT, step=False)
    assert {entry.partition(" = ")[0] for entry in with_more.passed_over_fields} >= more.keys() - {"hidden_act"}
    assert not any("(is off)" in entry for entry in with_more.passed_over_fields)
    assert (with_more.parameters, with_more.forward_flops) == (plain.parameters, plain.forward_flops)


FALSE_OF: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (OF_GPT2, {"attention_bias": False, "use_bias": False, "attn_bias": False, "hidden_act": "swiglu", "rotary": True}),
    (OF_GPT2, {"position_embedding_type": "rope_gptj", "use_embedding_sharing": False, "norm_type": "rms_norm"}),
    (OF_GPT2, {"learned_pos_emb": False, "do_layer_norm_before": False}),
    (PHI, {"attention_bias": False, "lm_head_bias": False, "use_parallel_residual": False, "activation": "swiglu"}),
    (PHI, {"act_fn": "geglu", "use_rotary_pos_emb": False}),
    (GPTJ, {"lm_head_bias": False, "use_parallel_block": False}),
    (GPT_NEOX, {"rotary": False, "parallel_attn": False}),
    (
        STARCODER2,
        {
            "bias": False,
            "mlp_hidden_act": "swiglu",
            "use_parallel_block": True,
            "mlp_type": "gated",
            "scale_attn_weights": False,
        },
    ),
    (COHERE, {"use_parallel_block": False, "use_gated_activation": False}),
    (GRANITE, {"layer_switch": 4, "order_of_interleaved_layers": "local_attn_first", "norm_type": "layer_norm"}),
    (GRANITE, {"apply_residual_connection_post_layernorm": True, "use_embedding_sharing": True, "activation": "own"}),
    (FALCON, {"use_parallel_residual": False, "use_alibi": True, "no_bias": False}),
    (DOTS1, {"qkv_bias": True, "num_shared_experts": 0, "use_shared_expert": False}),
    (OLMOE, {"use_shared_expert": True, "first_k_dense_replace": 1, "n_experts": 0}),
    (MOE_LITE, {"use_mla": False}),
    (AFMOE, {"attention_gate": False}),
    (GRANITE, {"normalization_function": "layernorm", "gated_linear_unit": False, "mamba_use_mlp": False}),
    (GRANITE, {"attention_method": "MLA", "mamba_inner_layernorms": True, "use_shared_block_lora": True}),
    (GRANITE, {"conv_dim": 64, "lora_rank": 64, "time_step_rank": 4, "pad_vocab_size_multiple": 7}),
    (JAMBA, {"mamba_inner_layernorms": False, "time_step_rank": 4}),
    (FALCON_H1, {"mamba_use_mlp": False}),
    (LFM2, {"block_use_swiglu": False, "use_pos_enc": False, "block_dim": 32, "conv_dim": 32}),
]
EACH_FALSE = [(fields, field, value) for fields, more in FALSE_OF for field, value in more.items()]


@pytest.mark.parametrize(
    ("fields", "field", "value"), EACH_FALSE, ids=[f"{fields['model_type']}-{name}" for fields, name, _ in EACH_FALSE]
)
def test_what_is_false_of_the_model_is_refused_on_or_off(fields: dict[str, Any], field: str, value: Any) -> None:
    own = "activation_function" if (fields["model_type"], field) == ("gpt2", "hidden_act") else field
    with pytest.raises(ConfigError, match=f"^(config: )?({own}|{field}) = "):
        analyze(fields | {field: value}, SHORT, step=False)


# What modules do not tell: norms after blocks have the names of norms before; layers without rotation see its tables;
# norms of queries and keys that only some layers have are there; names of GPT-2's norms do not say where they are.
UNTOLD = {
    "olmo2": {Part.NORM_BEFORE},
    "olmo3": {Part.NORM_BEFORE},
    "smollm3": {Part.ROTARY},
    "gpt2": {Part.NORM_BEFORE, Part.NORM_AFTER},
    "llama4": {Part.ROTARY, Part.QK_NORM},
}


@pytest.mark.parametrize("name", [name for name in NATIVE if name != "kimi_k2"])
def test_the_parts_of_a_spec_are_those_of_the_modules_of_transformers(name: str) -> None:
    spec = spec_from_fields(dict(NATIVE[name]), "x")
    fields = {**without(NATIVE[name], "head_dim"), "model_type": spec.model_type}  # some classes only keep the field
    read = read_foreign(ForeignConfig(name="x", source="x", model_type=spec.model_type, fields=fields))
    with quiet():
        load_code_of(read.decoder)
        found = discover(read.decoder, "eager")
    of_spec, of_modules = parts_of_spec(spec), parts_of_model(found, read.config)
    untold = UNTOLD.get(name, set())
    assert {part: of_modules.get(part) for part in {*of_spec, *of_modules} - untold} == {
        part: of_spec.get(part) for part in {*of_spec, *of_modules} - untold
    }
