"""The native modules against transformers: names, shapes, logits and gradients, with the same weights, in fp32."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.modeling_layers import MtpLayer

from tests.checkpoints import in_native_names
from tests.shrunken import (
    DEEPSEEK_V2,
    DEEPSEEK_V2_LITE,
    DEEPSEEK_V3,
    DEEPSEEK_V32,
    FAMILIES,
    GEMMA,
    GEMMA2,
    GEMMA3,
    GEMMA4,
    GLM4_MOE,
    GLM_MOE_DSA,
    GPT2,
    GPT_OSS,
    LLAMA,
    LLAMA4,
    MINIMAX_M2,
    MISTRAL,
    MIXTRAL,
    OLMO2,
    OLMO3,
    QWEN2,
    QWEN2_MOE,
    QWEN3,
    QWEN3_MOE,
    SMOLLM3,
)
from torch_models import build, build_mtp, initialize
from torch_models.builder import build_mtp_layers, creating
from torch_models.fields.config import spec_from_fields
from torch_models.modules.attention.latents import MultiHeadLatentAttention
from torch_models.modules.layers import rotary_tables

SEQUENCE_LENGTH = 48

YARN = {
    "type": "yarn",
    "factor": 4,
    "original_max_position_embeddings": 16,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}

# As many factors as pairs of rotated channels in LLAMA.
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.5, 4.0, 8.0]}

NAMES_OF_GPT2 = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
GPT2_BY_ITS_NAMES = {NAMES_OF_GPT2.get(field, field): value for field, value in GPT2.items()}


def without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {field: value for field, value in fields.items() if field != name}


CASES: dict[str, dict[str, Any]] = FAMILIES | {
    "llama-grouped-queries": LLAMA | {"num_key_value_heads": 2},
    "llama-tied": LLAMA | {"tie_word_embeddings": True},
    "llama-biases": LLAMA | {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
    "llama-wide-heads": LLAMA | {"head_dim": 16, "num_key_value_heads": 2},
    "llama-gelu": LLAMA | {"hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-3},
    "llama-rope-llama3": LLAMA
    | {
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "llama-rope-linear": LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "llama-rope-yarn": LLAMA
    | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    "llama-rope-yarn-mscale": LLAMA
    | {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "mscale": 1.0,
            "mscale_all_dim": 0.7,
        }
    },
    "llama-rope-yarn-options": LLAMA
    | {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "attention_factor": 1.3,
            "truncate": False,
            "beta_fast": 4.0,
        }
    },
    "llama-rope-dynamic": LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "llama-rope-dynamic-beyond": LLAMA
    | {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 20},
    "llama-rope-longrope-short": LLAMA | {"rope_scaling": LONGROPE | {"original_max_position_embeddings": 48}},
    "llama-rope-longrope-long": LLAMA | {"rope_scaling": LONGROPE | {"original_max_position_embeddings": 16}},
    "llama-rope-longrope-factor": LLAMA
    | {"rope_scaling": LONGROPE | {"original_max_position_embeddings": 16, "attention_factor": 1.19, "factor": 7.0}},
    "llama-rope-proportional": LLAMA
    | {"rope_scaling": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "factor": 2.0}},
    "llama-rope-yarn-lengths": LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "llama-rope-unread": LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "finetuned": True}},
    "mixtral-rope-longrope": MIXTRAL
    | {"head_dim": 8, "rope_scaling": LONGROPE | {"original_max_position_embeddings": 16}},
    "deepseek_v3-rope-dynamic": DEEPSEEK_V3
    | {"rope_scaling": {"rope_type": "dynamic", "factor": 3.0}, "max_position_embeddings": 20},
    "deepseek_v32-yarn": DEEPSEEK_V32 | {"rope_scaling": YARN, "index_head_dim": 8},
    "glm_moe_dsa-every-key": GLM_MOE_DSA
    | {"index_topk": 64, "mlp_layer_types": ["dense", "sparse", "sparse", "dense"]},
    "llama-exact-gelu": LLAMA | {"hidden_act": "gelu"},
    "llama-rope-parameters": LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
    "mistral-without-window": MISTRAL | {"sliding_window": None},
    "qwen2-some-windows": QWEN2 | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "qwen3-biases": QWEN3 | {"attention_bias": True},
    "gemma-first-files": GEMMA | {"hidden_act": "gelu", "attention_bias": True},
    "gemma2-uncapped": GEMMA2 | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    "gemma3_text-layer-types": GEMMA3
    | {
        "layer_types": ["full_attention", "full_attention", "sliding_attention"],
        "rope_theta": None,
        "rope_local_base_freq": None,
        "rope_scaling": None,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 700.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 90.0},
        },
        "attention_bias": True,
        "final_logit_softcapping": None,
    },
    "olmo3-biases": OLMO3 | {"attention_bias": True},
    "smollm3-window": SMOLLM3
    | {"no_rope_layers": [0, 1, 1, 0], "use_sliding_window": True, "sliding_window": 9}
    | {"mlp_bias": True, "tie_word_embeddings": False},
    "mixtral-window": MIXTRAL | {"sliding_window": 9},
    "qwen3_moe-some-dense": QWEN3_MOE | {"mlp_only_layers": [0], "decoder_sparse_step": 2, "norm_topk_prob": False},
    "gpt_oss-layer-types": GPT_OSS | {"layer_types": ["full_attention"] * 3 + ["sliding_attention"]},
    "gemma4-values": GEMMA4
    | {"attention_k_eq_v": False, "attention_bias": True, "layer_types": ["full_attention"] * 3},
    "gemma2-biases": GEMMA2 | {"attention_bias": True},
    "olmo2-biases": OLMO2 | {"attention_bias": True},
    "qwen3_moe-window": QWEN3_MOE | {"use_sliding_window": True, "sliding_window": 9},
    "qwen3_moe-biases": QWEN3_MOE | {"attention_bias": True},
    "qwen2_moe-some-dense": QWEN2_MOE | {"decoder_sparse_step": 2, "qkv_bias": False, "norm_topk_prob": True},
    "qwen2_moe-windows": QWEN2_MOE | {"use_sliding_window": True, "sliding_window": 9, "mlp_only_layers": [1]},
    "qwen2_moe-some-windows": QWEN2_MOE | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
    "minimax_m2-all-rotated": without(MINIMAX_M2, "rotary_dim"),
    "minimax_m2-rope-parameters": without(MINIMAX_M2, "rotary_dim")
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.25}},
    "gpt_oss-without-biases": GPT_OSS | {"attention_bias": False},
    "deepseek_v2-yarn": DEEPSEEK_V2 | {"rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}},
    "llama4-top-1": LLAMA4
    | {
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "use_qk_norm": False,
        "attn_temperature_tuning": False,
    },
    # Without rotation the bias of keys shifts all scores of a query alike: its gradient is zero, and here rounding.
    "llama4-biases": LLAMA4 | {"attention_bias": True, "moe_layers": [2], "no_rope_layers": [1] * 4},
    "llama4-layer-types": LLAMA4 | {"layer_types": ["full_attention"] * 2 + ["chunked_attention"] * 2},
    "llama4-step-of-rope": LLAMA4
    | {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 16.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 1.0,
            "original_max_position_embeddings": 16,
        }
    },
    "glm4_moe-air": GLM4_MOE | {"use_qk_norm": False},
    "deepseek_v3-yarn": DEEPSEEK_V3 | {"rope_scaling": YARN},
    "deepseek_v3-yarn-unequal-mscale": DEEPSEEK_V3 | {"rope_scaling": YARN | {"mscale": 0.7}},
    "deepseek_v3-direct-queries": DEEPSEEK_V3 | {"q_lora_rank": None},
    "deepseek_v3-biases": DEEPSEEK_V3 | {"attention_bias": True},
    "deepseek_v3-one-group": DEEPSEEK_V3 | {"n_group": 1, "topk_group": 1, "norm_topk_prob": False},
    "deepseek_v3-all-experts": DEEPSEEK_V3 | {"num_experts_per_tok": 16, "topk_group": 4},
    "deepseek_v3-halves-rotated": DEEPSEEK_V3 | {"rope_interleave": False},
    "gpt2-own-names": GPT2_BY_ITS_NAMES,
    "gpt2-untied": GPT2 | {"tie_word_embeddings": False},
    "gpt2-exact-gelu": GPT2 | {"activation_function": "gelu", "layer_norm_epsilon": 1e-3, "n_inner": None},
    "gpt2-unscaled": GPT2 | {"scale_attn_weights": False},
    "gpt2-scaled-by-layer": GPT2 | {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    "deepseek_v3-all-dense": DEEPSEEK_V3 | {"first_k_dense_replace": 4},
}


def reference_model(fields: dict[str, Any]) -> Any:
    """transformers' model of the same config, with weights large enough that every part matters."""
    if fields["model_type"] == "kimi_k2":  # transformers reads it as DeepSeek-V3
        fields = fields | {"model_type": "deepseek_v3"}
    config = transformers.AutoConfig.for_model(**fields)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        for name, buffer in model.named_buffers():
            if name.endswith(("e_score_correction_bias", "layer_scalar")):
                buffer.normal_(std=0.3)
    return model


def token_ids() -> torch.Tensor:
    return torch.randint(0, 96, (2, SEQUENCE_LENGTH), generator=torch.Generator().manual_seed(1))


def loss_of(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.parametrize("kernels", ["fused", "eager"])
@pytest.mark.parametrize("fields", CASES.values(), ids=CASES.keys())
def test_logits_and_gradients_equal_transformers(fields: dict[str, Any], kernels: Any) -> None:
    reference = reference_model(fields)
    model = build(spec_from_fields(fields, "shrunken"), kernels=kernels)
    model_type = fields["model_type"]
    model.load_state_dict(in_native_names(reference.state_dict(), model_type))  # strict: every name and every shape

    ids = token_ids()
    expected, logits = reference(input_ids=ids).logits, model(ids)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)

    loss_of(expected, ids).backward()
    loss_of(logits, ids).backward()
    expected_gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert gradients.keys() == in_native_names(expected_gradients, model_type).keys()
    for name, expected_gradient in expected_gradients.items():
        if expected_gradient is None:  # of an indexer, which only chooses
            assert gradients[name] is None, name
            continue
        # Of queries, keys and values in one: without rotation the gradient of the keys' bias is 0.
        scale = float(expected_gradient.abs().max()) or 1.0
        for own, part in in_native_names({name: expected_gradient}, model_type).items():
            torch.testing.assert_close(gradients[own] / scale, part / scale, rtol=0, atol=2e-4, msg=own)


@pytest.mark.parametrize(
    "fields", [DEEPSEEK_V3, GLM4_MOE, DEEPSEEK_V32], ids=["deepseek_v3", "glm4_moe", "deepseek_v32"]
)
def test_multi_token_prediction_layer_equals_transformers(fields: dict[str, Any]) -> None:
    reference_main = reference_model(fields)
    last = reference_main.model.layers[-1]
    reference = MtpLayer(
        reference_main.config, type(last), type(reference_main.model.norm), layer_idx=fields["num_hidden_layers"] - 1
    )
    with torch.no_grad():
        for tensor in reference.state_dict().values():
            tensor.normal_(std=0.3)
    spec = spec_from_fields(fields, "shrunken")
    (layer,) = build_mtp_layers(spec)
    # transformers nests the layer and renames the last norm; the published checkpoint does neither.
    renamed = {
        name.removeprefix("mtp_block.").replace("post_norm", "shared_head.norm"): tensor
        for name, tensor in reference.state_dict().items()
    }
    layer.load_state_dict(renamed)

    generator = torch.Generator().manual_seed(2)
    hidden, embedding = (torch.randn(2, SEQUENCE_LENGTH, 64, generator=generator) for _ in range(2))
    positions = torch.arange(SEQUENCE_LENGTH).unsqueeze(0)
    future = torch.full((SEQUENCE_LENGTH, SEQUENCE_LENGTH), float("-inf")).triu(1)[None, None]
    expected = reference(embedding, hidden, reference_main.model.rotary_emb(hidden, positions), future, positions, None)
    tables = rotary_tables(spec.mtp_layers[0].attention.rotary, SEQUENCE_LENGTH, hidden.device, hidden.dtype)
    torch.testing.assert_close(layer(hidden, embedding, tables), expected, rtol=1e-4, atol=1e-4)


# What zai-org/GLM-4.5 stores below model.layers.92., less its copies of the embedding and the head; its experts, which
# are stored one by one, stacked. The shapes follow from its config.json.
GLM_4_5_MTP = {
    "enorm.weight": (5120,),
    "hnorm.weight": (5120,),
    "eh_proj.weight": (5120, 10240),
    "shared_head.norm.weight": (5120,),
    "input_layernorm.weight": (5120,),
    "post_attention_layernorm.weight": (5120,),
    "self_attn.q_proj.weight": (12288, 5120),
    "self_attn.q_proj.bias": (12288,),
    "self_attn.k_proj.weight": (1024, 5120),
    "self_attn.k_proj.bias": (1024,),
    "self_attn.v_proj.weight": (1024, 5120),
    "self_attn.v_proj.bias": (1024,),
    "self_attn.o_proj.weight": (5120, 12288),
    "self_attn.q_norm.weight": (128,),
    "self_attn.k_norm.weight": (128,),
    "mlp.gate.weight": (160, 5120),
    "mlp.gate.e_score_correction_bias": (160,),
    "mlp.experts.gate_up_proj": (160, 2 * 1536, 5120),
    "mlp.experts.down_proj": (160, 5120, 1536),
    "mlp.shared_experts.gate_proj.weight": (1536, 5120),
    "mlp.shared_experts.up_proj.weight": (1536, 5120),
    "mlp.shared_experts.down_proj.weight": (5120, 1536),
}


def test_multi_token_prediction_of_glm_4_5_has_the_published_names_and_shapes() -> None:
    (layer,) = build_mtp("glm_4_5", device="meta")
    assert {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()} == GLM_4_5_MTP


@pytest.mark.parametrize("fields", [LLAMA, DEEPSEEK_V3], ids=["llama", "deepseek_v3"])
def test_models_train_in_bf16(fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = build(spec_from_fields(fields, "shrunken"), dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = token_ids()
    losses = []
    for _ in range(30):
        loss = loss_of(model(ids).float(), ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("fields", [LLAMA, DEEPSEEK_V3], ids=["llama", "deepseek_v3"])
def test_no_position_sees_a_later_one(fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = build(spec_from_fields(fields, "shrunken"))
    ids = token_ids()
    changed = ids.clone()
    changed[:, 30] = (changed[:, 30] + 1) % 96
    with torch.no_grad():
        before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :30], after[:, :30], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, 30:], after[:, 30:])


@pytest.mark.parametrize("fields", [DEEPSEEK_V2, DEEPSEEK_V2_LITE], ids=["latent_queries", "direct_queries"])
def test_latent_attention_is_the_sum_over_parts_of_its_heads(fields: dict[str, Any]) -> None:
    """A module with the columns and rows of some heads, as tensor parallelism makes it."""
    torch.manual_seed(0)
    spec = spec_from_fields(fields, "shrunken").layers[0].attention
    x, dtype = torch.randn(2, 12, spec.hidden_size, dtype=torch.float64), torch.float64
    tables = rotary_tables(spec.rotary, 12, x.device, dtype)
    with creating("cpu", dtype):
        whole = MultiHeadLatentAttention(spec, "fused")
        parts = [MultiHeadLatentAttention(spec, "fused") for _ in range(2)]
    initialize(whole, initializer_range=0.3)
    for number, part in enumerate(parts):
        part.load_state_dict(whole.state_dict())
        names = {"q_b_proj", "q_proj", "kv_b_proj", "o_proj"}
        for name, projection in part.named_children():
            if name in names:
                weight = projection.weight.chunk(2, dim=int(name == "o_proj"))[number]
                projection.weight = torch.nn.Parameter(weight.clone())
    torch.testing.assert_close(sum(part(x, tables) for part in parts), whole(x, tables), rtol=1e-10, atol=1e-12)
