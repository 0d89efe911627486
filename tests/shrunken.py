"""Configs of every family, shrunken so that a test builds them in milliseconds."""

from collections.abc import Sequence
from typing import Any, TypeVar

Way = TypeVar("Way")

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "max_position_embeddings": 64,
}

DEEPSEEK_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 4,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 16,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "q_lora_rank": 40,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "max_position_embeddings": 64,
}

QWEN2: dict[str, Any] = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_key_value_heads": 2}

QWEN3: dict[str, Any] = QWEN2 | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16}

MISTRAL: dict[str, Any] = LLAMA | {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "num_key_value_heads": 2,
    "sliding_window": 12,
}

OLMO2: dict[str, Any] = LLAMA | {
    "architectures": ["Olmo2ForCausalLM"],
    "model_type": "olmo2",
    "num_key_value_heads": 4,
    "pad_token_id": None,  # transformers gives the padding token's embedding no gradient
}

GEMMA: dict[str, Any] = LLAMA | {
    "architectures": ["GemmaForCausalLM"],
    "model_type": "gemma",
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": None,  # transformers gives the padding token's embedding no gradient
}

GEMMA2: dict[str, Any] = LLAMA | {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "num_key_value_heads": 4,
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 12,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 7.0,
    "hidden_act": "gelu_pytorch_tanh",
    "pad_token_id": None,  # transformers gives the padding token's embedding no gradient
}

GEMMA3: dict[str, Any] = LLAMA | {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "num_key_value_heads": 4,
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 12,
    "sliding_window_pattern": 3,
    "rope_theta": 50000.0,
    "rope_local_base_freq": 300.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "final_logit_softcapping": 7.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "pad_token_id": None,  # transformers gives the padding token's embedding no gradient
}

OLMO3: dict[str, Any] = OLMO2 | {
    "architectures": ["Olmo3ForCausalLM"],
    "model_type": "olmo3",
    "num_hidden_layers": 4,
    "sliding_window": 12,
    "rope_theta": 3000.0,
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
}

SMOLLM3: dict[str, Any] = LLAMA | {
    "architectures": ["SmolLM3ForCausalLM"],
    "model_type": "smollm3",
    "num_key_value_heads": 2,
    "no_rope_layer_interval": 2,
    "pad_token_id": None,  # transformers gives the padding token's embedding no gradient
}

MIXTRAL: dict[str, Any] = LLAMA | {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_key_value_heads": 2,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "intermediate_size": 40,
}

QWEN3_MOE: dict[str, Any] = QWEN3 | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
}

GPT_OSS: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "swiglu_alpha": 1.3,
    "swiglu_limit": 0.5,
    "sliding_window": 12,
    "max_position_embeddings": 64,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 4.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 16,
    },
}

GLM4_MOE: dict[str, Any] = LLAMA | {
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "num_key_value_heads": 2,
    "head_dim": 16,
    "attention_bias": True,
    "use_qk_norm": True,
    "partial_rotary_factor": 0.25,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": False,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
}

GEMMA4: dict[str, Any] = {
    "architectures": ["Gemma4ForCausalLM"],
    "model_type": "gemma4_text",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "num_global_key_value_heads": 2,
    "global_head_dim": 24,
    "attention_k_eq_v": True,
    "sliding_window": 12,
    "final_logit_softcapping": 7.0,
    "enable_moe_block": True,
    "num_experts": 8,
    "top_k_experts": 3,
    "moe_intermediate_size": 24,
    "hidden_size_per_layer_input": 0,
    "max_position_embeddings": 64,
    "pad_token_id": None,  # transformers gives the padding token's embedding no gradient
}

# Without experts; keys of global layers are the values too.
GEMMA4_UNIFIED: dict[str, Any] = {
    name: value for name, value in GEMMA4.items() if "moe" not in name and "expert" not in name
} | {"architectures": ["Gemma4UnifiedForCausalLM"], "model_type": "gemma4_unified_text"}

# Every second layer rotates and attends within chunks, the others sharpen their softmax; experts in one of each.
LLAMA4: dict[str, Any] = LLAMA | {
    "architectures": ["Llama4ForCausalLM"],
    "model_type": "llama4_text",
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 40,
    "intermediate_size_mlp": 112,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "moe_layers": [0, 3],
    "no_rope_layer_interval": 2,
    "attention_chunk_size": 20,
    "floor_scale": 8,
    "attn_scale": 0.4,
}

DEEPSEEK_V2: dict[str, Any] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 16,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "topk_method": "group_limited_greedy",
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.5,
    "q_lora_rank": 40,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "max_position_embeddings": 64,
}

DEEPSEEK_V2_LITE: dict[str, Any] = DEEPSEEK_V2 | {"q_lora_rank": None, "topk_method": "greedy"}

KIMI_K2: dict[str, Any] = DEEPSEEK_V3 | {"model_type": "kimi_k2", "n_group": 1, "topk_group": 1}

QWEN2_MOE: dict[str, Any] = QWEN2 | {
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
}

MINIMAX_M2: dict[str, Any] = LLAMA | {
    "architectures": ["MiniMaxM2ForCausalLM"],
    "model_type": "minimax_m2",
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rotary_dim": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "intermediate_size": 24,
}

# Sequences of the tests are longer than the number of keys that are chosen.
DEEPSEEK_V32: dict[str, Any] = DEEPSEEK_V3 | {
    "architectures": ["DeepseekV32ForCausalLM"],
    "model_type": "deepseek_v32",
    "index_n_heads": 6,
    "index_head_dim": 12,
    "index_topk": 5,
}

GLM_MOE_DSA: dict[str, Any] = DEEPSEEK_V32 | {
    "architectures": ["GlmMoeDsaForCausalLM"],
    "model_type": "glm_moe_dsa",
    "n_group": 1,
    "topk_group": 1,
    "index_head_dim": 8,
}

GPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": 96,
    "hidden_size": 64,
    "n_inner": 112,
    "tie_word_embeddings": True,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "max_position_embeddings": 4096,  # no longer sequence runs
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# One row per family, in every test that is parametrised over families.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "smollm": LLAMA | {"tie_word_embeddings": True, "num_key_value_heads": 2},
    "olmo2": OLMO2,
    "olmo3": OLMO3,
    "smollm3": SMOLLM3,
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "gemma4": GEMMA4,
    "gemma4_unified": GEMMA4_UNIFIED,
    "mixtral": MIXTRAL,
    "qwen3_moe": QWEN3_MOE,
    "qwen2_moe": QWEN2_MOE,
    "minimax_m2": MINIMAX_M2,
    "gpt_oss": GPT_OSS,
    "glm4_moe": GLM4_MOE,
    "llama4": LLAMA4,
    "deepseek_v2": DEEPSEEK_V2,
    "deepseek_v2_lite": DEEPSEEK_V2_LITE,
    "deepseek_v3": DEEPSEEK_V3,
    "kimi_k2": KIMI_K2,
    "deepseek_v32": DEEPSEEK_V32,
    "glm_moe_dsa": GLM_MOE_DSA,
    "gpt2": GPT2,
}

# The families of these with biases of projections or of the router's choice.
WITH_BIASES = {"qwen2", "qwen2_moe", "gpt_oss", "glm4_moe", "minimax_m2", "gpt2"}
WITH_BIASES |= {"deepseek_v3", "kimi_k2", "deepseek_v32", "glm_moe_dsa"}

# Families that tensor parallelism does not divide: an MLP beside the experts, each with norms of its own; an indexer.
WITHOUT_TP = frozenset(("gemma4", "deepseek_v32", "glm_moe_dsa"))

# Every mechanism: tied weights, layers without rotation, windows, capped scores, sinks, all kinds of experts, latent
# attention, MTP, LayerNorm, learned positions, chunks, queries by position, an indexer.
REPRESENTATIVE = ("llama", "smollm3", "gemma2", "mixtral", "gpt_oss", "llama4", "deepseek_v3", "deepseek_v32", "gpt2")

# Every mechanism of these is in another family too, in brackets; what differs are names, fields and sizes.
COVERED = (
    "smollm",  # a tied head and grouped queries (smollm3)
    "mistral",  # windows (gemma2)
    "qwen2",  # biases (glm4_moe)
    "olmo3",  # norms after blocks and over all heads (olmo2), windows (gemma2)
    "qwen3_moe",  # norms of heads (qwen3), experts (mixtral)
    "glm_moe_dsa",  # a router without groups (minimax_m2), the rest (deepseek_v32)
    "kimi_k2",  # a router without groups (minimax_m2), the rest (deepseek_v3)
)


def shared_out(ways: Sequence[Way], *, share: int = 1, whole: Sequence[str] = REPRESENTATIVE) -> list[tuple[str, Way]]:
    """Return each family of `whole` with all ways, and each other with `share` of them.

    The others take their share in turn, so that many families run each way. Families that others cover take one.
    """
    found: list[tuple[str, Way]] = []
    begin = 0
    for family in FAMILIES:
        number = len(ways) if family in whole else 1 if family in COVERED else share
        found += [(family, ways[(begin + index) % len(ways)]) for index in range(number)]
        begin += number
    return found
