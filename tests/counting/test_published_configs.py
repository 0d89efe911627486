"""Configs as they are published, with fields that their class does not declare: the counts of transformers' modules.

The expected numbers are those of transformers 5.23's own modules on the meta device: `numel`, active parameters, and
the forward FLOPs of 2,048 tokens.
"""

from typing import Any

import pytest

from counting.analysis import analyze
from counting.setup import Setup


def decoder(model_type: str, *sizes: int, **fields: Any) -> dict[str, Any]:
    """A config with these sizes: vocabulary, width, feed-forward, layers, heads, key and value heads."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {"model_type": model_type, **dict(zip((*names, "num_key_value_heads"), sizes, strict=True)), **fields}


# What files of transformers 4 say of training, generation and labels; all of it beside the model.
BESIDE: dict[str, Any] = {
    "attention_dropout": 0.1,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "top_k": 50,
    "top_p": 0.9,
    "max_length": 20,
    "bad_words_ids": None,
    "pruned_heads": {},
    "id2label": {"0": "LABEL_0"},
    "pretraining_tp": 2,
    "unsloth_version": "2025.5.1",
    "classifier_dropout": 0.1,
    "auto_map": {"AutoConfig": "configuration_own.OwnConfig"},
    "_comment": "anything",
    "of_the_future": False,
}
QWEN3_MOE = decoder(
    "qwen3_moe", 49152, 512, 1536, 8, 8, 8, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=384
)
QWEN3_MOE |= {"norm_topk_prob": True, "tie_word_embeddings": True, "rope_theta": 100000, "max_window_layers": 8}
QWEN3_MOE |= {"sliding_window": None, "use_sliding_window": False, "mlp_only_layers": []}
DEEPSEEK_SPARSE = decoder("glm_moe_dsa", 154880, 6144, 12288, 78, 64, 64, moe_intermediate_size=2048)
DEEPSEEK_SPARSE |= {"n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "q_lora_rank": 2048}
DEEPSEEK_SPARSE |= {"kv_lora_rank": 512, "qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "v_head_dim": 256}
DEEPSEEK_SPARSE |= {"first_k_dense_replace": 3, "index_head_dim": 128, "index_n_heads": 32, "index_topk": 2048}

# Name -> the fields, and parameters, active parameters, FLOPs.
CASES: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "qwen3_coder_480b": (
        decoder("qwen3_moe", 151936, 6144, 8192, 62, 96, 8, num_experts=160, num_experts_per_tok=8)
        | {"head_dim": 128, "moe_intermediate_size": 2560, "qkv_bias": False, "use_qk_norm": True}
        | {"norm_topk_prob": True, "shared_expert_intermediate_size": 0, "max_window_layers": 62},
        (480154875392, 35474765312, 154259656015872),
    ),
    "qwen3_moe_with_heads_of_128": (
        QWEN3_MOE | {"head_dim": 128, "qkv_bias": False},
        (79735296, 51423744, 348026568704),
    ),
    "qwen3_moe_without_head_dim": (QWEN3_MOE, (71345664, 43034112, 244947353600)),
    "glm_5": (
        DEEPSEEK_SPARSE
        | {"head_dim": 64, "qk_head_dim": 256, "indexer_rope_interleave": True, "rope_interleave": True}
        | {"moe_layer_freq": 1, "num_nextn_predict_layers": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc"}
        | {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.5, "norm_topk_prob": True, "ep_size": 1}
        | {"rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}},
        (743911199232, 41784709632, 191389111418880),
    ),
    "minimax_m2_5": (
        decoder("minimax_m2", 200064, 3072, 1536, 62, 48, 8, head_dim=128, num_local_experts=256)
        | {"num_experts_per_tok": 8, "rotary_dim": 64, "use_qk_norm": True, "qk_norm_type": "per_layer"}
        | {"use_routing_bias": True, "use_mtp": True, "mtp_transformer_layers": 1, "num_mtp_modules": 3}
        | {"shared_intermediate_size": 0, "scoring_func": "sigmoid", "quantization_config": {"quant_method": "fp8"}},
        (228689748992, 11030537216, 49051210874880),
    ),
    "exaone4_32b": (
        decoder("exaone4", 102400, 5120, 27392, 64, 40, 8, head_dim=128, sliding_window=4096)
        | {"layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 16, "sliding_window_pattern": "LLLG"},
        (32003216384, 32003216384, 134432476364800),
    ),
    "smollm3_3b": (
        decoder("smollm3", 128256, 2048, 11008, 36, 16, 4, max_window_layers=28, sliding_window=None)
        | {"layer_types": ["full_attention"] * 36, "no_rope_layers": [1, 1, 1, 0] * 9, "use_sliding_window": False}
        | {"mlp_bias": False, "attention_bias": False, "pad_token_id": 128004},
        (3075098624, 3075098624, 13831942176768),
    ),
    "qwen1_5_moe": (
        decoder("qwen2_moe", 151936, 2048, 5632, 24, 16, 16, num_experts=60, num_experts_per_tok=4)
        | {"moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632}
        | {"sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 21},
        (14315784192, 2689173504, 10563941826560),
    ),
    # 2 x 2,048 FLOPs for each of 48 (62,914,560 + 81,920 + 2 x 125,829,120) + 1,034,485,760 weights that a token
    # passes, and 48 x 4 x 2,048^2 x 5,120 of attention. Transformers' own experts each multiply all tokens, 16 times
    # as many.
    "llama_4_scout": (
        decoder("llama4_text", 202048, 5120, 8192, 48, 40, 8, head_dim=128, intermediate_size_mlp=16384)
        | {"num_local_experts": 16, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1, "no_rope_layers": []}
        | {"attention_chunk_size": 8192, "use_qk_norm": True, "for_llm_compressor": False, "attn_temperature_tuning": 4}
        | {"max_position_embeddings": 10485760, "router_jitter_noise": 0.0},
        (107769861120, 17172894720, 70224057466880),
    ),
    "mistral_7b": (
        decoder("mistral", 32768, 4096, 14336, 32, 32, 8, sliding_window=None, head_dim=128),
        (7248023552, 7248023552, 31336081391616),
    ),
    "ernie_4_5_21b": (
        decoder("ernie4_5_moe", 103424, 2560, 12288, 28, 20, 4, moe_num_experts=64, moe_k=6, moe_layer_end_index=27)
        | {"moe_num_shared_experts": 2, "moe_intermediate_size": 1536, "moe_capacity": [64, 64, 64]}
        | {"moe_gate": "topk", "moe_use_aux_free": True, "num_nextn_predict_layers": 1, "use_bias": False},
        (21825437888, 3352150208, 14932393328640),
    ),
    "gemma_7b": (
        decoder("gemma", 256000, 3072, 24576, 28, 16, 16, head_dim=256, hidden_act="gelu"),
        (8537680896, 8537680896, 36893769072640),
    ),
    "phi3_mini": (
        decoder("phi3", 32064, 3072, 8192, 32, 32, 32, pad_token_id=0),
        (3821079552, 3821079552, 16896132907008),
    ),
    "yi_34b": (
        decoder("llama", 64000, 7168, 20480, 60, 56, 8, max_position_embeddings=4096)
        | {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        (34388917248, 34388917248, 146189949337600),
    ),
}


READ_NO_DROPOUT = {"ernie4_5_moe"}  # families through transformers whose class has no `attention_dropout`


@pytest.mark.parametrize(("fields", "expected"), CASES.values(), ids=CASES.keys())
def test_a_published_config_is_accepted_with_the_counts_of_transformers(
    fields: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    analysis = analyze(BESIDE | fields, Setup(sequence_length=2048), step=False)
    assert (analysis.parameters.total, analysis.parameters.active, analysis.forward_flops) == expected
    listed = {entry.partition(" = ")[0]: entry for entry in analysis.passed_over_fields}
    assert listed["of_the_future"] == "of_the_future = false (is off)"
    assert listed["auto_map"] == "auto_map = an object of 1 (points to remote code, which is never run)"
    # Through transformers, a rate that the family's class reads is in what is measured.
    reads = "no formula" in analysis.proof and analysis.model_type not in READ_NO_DROPOUT
    said = "what is measured in training mode has it)" if reads else "trains without dropout)"
    assert listed["attention_dropout"].endswith(said)
    assert "_comment" not in listed
    assert analysis.ignored_fields == ()


# Models whose layers carry a state along the sequence, and longrope's lists: their files say more than the class reads.
# Name -> the fields, of them those that the class does not declare, and parameters and active parameters.
OF_MAMBA: dict[str, Any] = {"expand": 2, "conv_kernel": 4, "time_step_rank": 160, "time_step_init_scheme": "random"}
HYBRID: dict[str, Any] = {"mamba_d_state": 128, "mamba_d_head": 64, "mamba_n_heads": 128, "mamba_n_groups": 1}
ZAMBA2_SHARED = (6, *range(11, 78, 6))
LONGROPE: dict[str, Any] = {"type": "longrope", "short_factor": [1.0] * 64, "long_factor": [2.0] * 64}
LONGROPE |= {"short_mscale": 1.25, "long_mscale": 1.25, "original_max_position_embeddings": 4096}
BEYOND_THE_CLASS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[int, int]]] = {
    "mamba_2_8b": (
        {"model_type": "mamba", "vocab_size": 50280, "hidden_size": 2560, "num_hidden_layers": 64, "state_size": 16}
        | OF_MAMBA,
        {"d_inner": 5120, "d_model": 2560, "fused_add_norm": True, "pad_vocab_size_multiple": 8, "ssm_cfg": {}},
        (2768345600, 2768345600),
    ),
    "codestral_mamba_7b": (
        {"model_type": "mamba2", "vocab_size": 32768, "hidden_size": 4096, "num_hidden_layers": 64, "state_size": 128}
        | {"n_groups": 8, "num_heads": 128, "head_dim": 64, "chunk_size": 256, "time_step_limit": [0.0, float("inf")]},
        {
            "intermediate_size": 8192,
            "norm_before_gate": True,
            "time_step_init_scheme": "random",
            "time_step_scale": 1.0,
        },
        (7285403648, 7285403648),
    ),
    "bamba_9b": (
        decoder("bamba", 128256, 4096, 14336, 32, 32, 8, attn_layer_indices=[9, 18, 27]) | HYBRID,
        {"attn_rotary_emb": 64},
        (9780235392, 9780235392),
    ),
    "nemotron_h_8b": (
        decoder("nemotron_h", 131072, 4096, 21504, 52, 32, 8, attention_head_dim=128, ssm_state_size=128, n_groups=8)
        | {"hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"}
        | {"mamba_num_heads": 128, "mamba_head_dim": 64, "mlp_hidden_act": "relu2"},
        {"time_step_rank": 256},
        (8100852736, 8100852736),
    ),
    # Active: 16 layers leave out 14 of 16 experts, each 3 x 4,096 x 14,336.
    "jamba_52b": (
        decoder("jamba", 65536, 4096, 14336, 32, 32, 8, num_experts=16, num_experts_per_tok=2, use_mamba_kernels=True),
        {"mamba_inner_layernorms": True},
        (51570323328, 51570323328 - 16 * 14 * 3 * 4096 * 14336),
    ),
    # A head of 128 channels, although 3,072 / 12 = 256: its modules read the field, which its class does not declare.
    "falcon_h1_7b": (
        decoder("falcon_h1", 130048, 3072, 12288, 44, 12, 2, head_dim=128, mamba_d_ssm=3072, mamba_d_state=256)
        | {"mamba_d_head": 128, "mamba_n_heads": 24, "mamba_n_groups": 1},
        {"mamba_use_mlp": True},
        (7585513568, 7585513568),
    ),
    "zamba2_7b": (
        decoder("zamba2", 32000, 3584, 14336, 81, 32, 32, n_mamba_heads=112, mamba_headdim=64, mamba_ngroups=2)
        | {"layers_block_type": ["hybrid" if index in ZAMBA2_SHARED else "mamba" for index in range(81)]}
        | {"adapter_rank": 128, "num_mem_blocks": 2, "use_mem_rope": True, "mamba_d_state": 64},
        {"gated_linear_unit": True, "lora_rank": 128, "use_shared_block_lora": True},
        (7356749648, 7356749648),
    ),
    "lfm2_1_2b": (
        {"model_type": "lfm2", "vocab_size": 65536, "hidden_size": 2048, "num_hidden_layers": 16}
        | {"num_attention_heads": 32, "num_key_value_heads": 8, "full_attn_idxs": [2, 5, 8, 10, 12, 14]}
        | {"block_ff_dim": 12288, "block_multiple_of": 256, "block_auto_adjust_ff_dim": True, "conv_L_cache": 3},
        {"block_dim": 2048, "block_mlp_init_scale": 1.0, "block_out_init_scale": 1.0, "block_norm_eps": 1e-5}
        | {"block_use_swiglu": True, "block_use_xavier_init": True, "conv_dim": 2048, "conv_dim_out": 2048}
        | {"conv_use_xavier_init": True, "use_pos_enc": True},
        (1170340608, 1170340608),
    ),
    # Active: 40 layers leave out 62 of 72 experts, each 3 x 4,096 x 768.
    "granite_4_h_small": (
        decoder("granitemoehybrid", 100352, 4096, 768, 40, 32, 8, num_local_experts=72, num_experts_per_tok=10)
        | {"layer_types": ["attention" if index % 10 == 5 else "mamba" for index in range(40)]}
        | {"shared_intermediate_size": 1536, "tie_word_embeddings": True, "position_embedding_type": "nope"}
        | HYBRID,
        {"normalization_function": "rmsnorm"},
        (32207337984, 32207337984 - 40 * 62 * 3 * 4096 * 768),
    ),
    # Its code reads the positions for every rotary type but the default, which replaces it: angles change no count.
    "phi_3_5_moe": (
        decoder("phimoe", 32064, 4096, 6400, 32, 32, 8, num_local_experts=16, num_experts_per_tok=2)
        | {"attention_bias": True, "lm_head_bias": True, "sliding_window": 131072, "max_position_embeddings": 131072}
        | {"original_max_position_embeddings": 4096, "rope_scaling": LONGROPE},
        {"rope_scaling.rope_type": "longrope"},
        (41873153344, 6640999744),
    ),
}


@pytest.mark.parametrize(("fields", "beyond", "expected"), BEYOND_THE_CLASS.values(), ids=BEYOND_THE_CLASS.keys())
def test_fields_beyond_the_class_that_say_what_is_built_are_listed(
    fields: dict[str, Any], beyond: dict[str, Any], expected: tuple[int, int]
) -> None:
    given = {field: value for field, value in beyond.items() if "." not in field}
    analysis = analyze(fields | given, Setup(sequence_length=64), step=False)
    assert (analysis.parameters.total, analysis.parameters.active) == expected
    assert {entry.partition(" = ")[0] for entry in analysis.passed_over_fields} >= beyond.keys() - {"d_model"}
    assert analysis.ignored_fields == ()
