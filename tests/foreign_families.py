"""Small configs of families that go through transformers, for several test files."""

from typing import Any

from tests.shrunken import DEEPSEEK_V3

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


PHI3: dict[str, Any] = {"model_type": "phi3", **SMALL}  # as its config.json
ONE_HEAD_EACH = without(SMALL, "num_key_value_heads")
GPT2: dict[str, Any] = {"vocab_size": 96, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
# Its routers have a parameter that is not trained.
ERNIE_MOE: dict[str, Any] = SMALL | {"moe_num_experts": 8, "moe_k": 3, "moe_intermediate_size": 16}

# What works, each with the kinds of its distinct layers and how many there are of each.
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "gpt_bigcode": (GPT2, {"dense": 3}),
    "opt": (
        without(ONE_HEAD_EACH, "intermediate_size") | {"ffn_dim": 112, "word_embed_proj_dim": 32},
        {"dense": 4},
    ),
    "bloom": (
        {"vocab_size": 96, "hidden_size": 64, "n_layer": 3, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
        {"dense": 3},
    ),
    "falcon": (without(ONE_HEAD_EACH, "intermediate_size"), {"dense": 4}),
    "phi3": (SMALL, {"dense": 4}),
    "cohere2": (SMALL | {"sliding_window": 8}, {"dense, sliding_attention": 3, "dense": 1}),
    "starcoder2": (SMALL, {"dense": 4}),
    "granite": (SMALL, {"dense": 4}),
    "nemotron": (SMALL, {"dense": 4}),
    "stablelm": (SMALL | {"qk_layernorm": True}, {"dense": 4}),
    "exaone4": (
        SMALL | {"num_hidden_layers": 6, "head_dim": 16, "sliding_window": 8, "sliding_window_pattern": 3},
        {"dense, sliding_attention": 4, "dense": 2},
    ),
    "olmoe": (SMALL | {"num_experts": 8, "num_experts_per_tok": 3}, {"moe": 4}),
    "glm4_moe_lite": (
        without(DEEPSEEK_V3, "architectures", "model_type") | {"bos_token_id": 1, "eos_token_id": 2},
        {"dense": 1, "moe": 3},
    ),
}

# The text part of a vision-language model, which has no causal language model of its own in transformers.
TEXT_PART: dict[str, Any] = {"model_type": "qwen3_vl_moe_text", **SMALL}
TEXT_PART |= {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48, "norm_topk_prob": True}
