"""Mixtures of experts of DeepSeek-V3's family: the published models at their sizes, and between them."""

from itertools import pairwise

import pytest

from counting.analysis import count_by_formula
from counting.cost.design import Architecture, design_model
from counting.cost.design.families.deepseek_v3 import PublishedMixture, large_from, published_mixtures
from counting.formulas.parameters import inactive_parameters
from torch_models.errors import UserError
from torch_models.fields.config import read_model, spec_from_fields
from torch_models.spec import ModelSpec

FIVE_MILLION = 47_476_210_890
SMALLEST, LARGEST = 1_000_000_000, 100_000_000_000


def sizes(architecture: Architecture) -> dict[str, int]:
    return {field: value for field, value in architecture.config.items() if isinstance(value, int)}


def active_by_formula(spec: ModelSpec) -> int:
    return count_by_formula(spec).total - sum(
        inactive_parameters(layer) * count for layer, count in spec.layer_groups()
    )


def check_sound(architecture: Architecture) -> None:
    """The rules, in the test's own words, with the ranges that the five published models span."""
    size = sizes(architecture)
    hidden, layers, heads = size["hidden_size"], size["num_hidden_layers"], size["num_attention_heads"]
    expert, experts, top_k = size["moe_intermediate_size"], size["n_routed_experts"], size["num_experts_per_tok"]
    shared, dense_layers = size["n_shared_experts"], size["first_k_dense_replace"]
    large = architecture.target_parameters >= 7.5421e9  # sqrt(2.6612 x 21.376) = 7.5423
    assert (top_k, shared, dense_layers) == ((8, 1, 3) if large else (6, 2, 1))
    assert architecture.config["q_lora_rank"] == (1536 if large else None)
    assert (size["n_group"], size["topk_group"]) == ((8, 4) if large else (1, 1))
    assert size["vocab_size"] in ((129_280,) if large else (102_400, 129_280, 163_840))
    assert hidden % (128 if hidden < 2048 else 256 if hidden < 8192 else 512) == 0
    assert size["intermediate_size"] == (top_k + shared) * expert
    assert expert % (64 if hidden < 2560 else 128) == 0
    assert heads % 4 == 0
    assert heads == size["num_key_value_heads"]
    assert experts % 32 == 0
    assert 1 <= heads * 128 / hidden <= 3.2  # DeepSeek-V2-Lite, DeepSeek-V2
    assert 2.4 <= (top_k + shared) * expert / hidden <= 5.5  # DeepSeek-V2, DeepSeek-V2-Lite
    assert 2048 / 27 <= hidden / layers <= 7168 / 61  # DeepSeek-V2-Lite, DeepSeek-V3
    assert 64 / 6 <= experts / top_k <= 32 + 32 / 8  # DeepSeek-V2-Lite, DeepSeek-V3 and one step

    queries = heads * 192
    rank = 1536 if large else None
    attention = hidden * queries if rank is None else hidden * rank + rank * queries + rank
    attention += hidden * (512 + 64) + 512 + 512 * heads * 256 + heads * 128 * hidden
    dense = attention + 3 * hidden * (top_k + shared) * expert + 2 * hidden
    used = attention + 3 * hidden * (top_k + shared) * expert + hidden * experts + 2 * hidden
    unused = 3 * hidden * expert * (experts - top_k)
    mixtures = layers - dense_layers
    active = 2 * size["vocab_size"] * hidden + dense_layers * dense + mixtures * used + hidden
    assert architecture.active_parameters == active
    assert architecture.parameters == active + mixtures * unused
    assert architecture.sized_by == "active"
    assert architecture.relative_error == active / architecture.target_parameters - 1
    assert abs(architecture.relative_error) <= 0.005


def read_back(architecture: Architecture) -> ModelSpec:
    spec = spec_from_fields(architecture.config, "design")
    assert spec.ignored_fields == ()
    assert len(spec.mtp_layers) == 1
    return spec


@pytest.mark.parametrize("steps", [60, pytest.param(2000, marks=pytest.mark.sweep)])
def test_a_fine_grid_of_sizes_has_no_gap(steps: int) -> None:
    growth = (LARGEST / SMALLEST) ** (1 / steps)
    for step in range(steps + 1):
        architecture = design_model(min(LARGEST, round(SMALLEST * growth**step)), "deepseek_v3")
        check_sound(architecture)
        if step % 10 == 0:
            spec = read_back(architecture)
            assert count_by_formula(spec).total == architecture.parameters
            assert active_by_formula(spec) == architecture.active_parameters


# --- Published models ------------------------------------------------------------------------------------------


def test_at_its_size_the_design_is_deepseek_v3() -> None:
    published = read_model("deepseek_v3")
    assert isinstance(published, ModelSpec)
    architecture = design_model(37_552_282_624, "deepseek_v3")
    spec = read_back(architecture)
    assert (architecture.parameters, architecture.relative_error) == (671_026_404_352, 0)
    # All but YaRN, which came after pre-training, is equal.
    for field in ("vocab_size", "hidden_size", "num_layers", "norm_eps", "tie_word_embeddings", "sequence_length"):
        assert getattr(spec, field) == getattr(published, field)
    assert [run.count for run in spec.layer_runs] == [run.count for run in published.layer_runs] == [3, 58]
    for ours, theirs in zip(spec.layer_runs, published.layer_runs, strict=True):
        assert ours.layer.feed_forward == theirs.layer.feed_forward
    assert spec.mtp_layers[0].feed_forward == published.mtp_layers[0].feed_forward


def test_at_its_size_the_design_is_moonlight() -> None:
    architecture = design_model(2_914_774_528, "deepseek_v3")
    assert (architecture.parameters, architecture.relative_error) == (15_960_108_544, 0)
    assert (
        sizes(architecture).items()
        >= {
            "hidden_size": 2048,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "intermediate_size": 11264,
            "moe_intermediate_size": 1408,
            "n_routed_experts": 64,
            "vocab_size": 163840,
        }.items()
    )


@pytest.mark.parametrize("name", ["deepseek_v2_lite", "deepseek_v2", "kimi_k2", "deepseek_v3"])
def test_the_table_agrees_with_the_configs(name: str) -> None:
    spec = read_model(name)
    assert isinstance(spec, ModelSpec)
    (row,) = (model for model in published_mixtures() if model.name.lower().replace("-", "_") == name)
    assert row.parameters == count_by_formula(spec).total
    assert row.active_parameters == active_by_formula(spec)


# Billions without the embedding and the head, total and active, which arXiv 2502.16982 compares with other models.
def test_a_published_shape_makes_the_published_size_of_moonlight() -> None:
    (row,) = (model for model in published_mixtures() if model.name.startswith("Moonlight"))
    vocabulary = 2 * row.vocab_size * row.hidden_size
    assert round((row.parameters - vocabulary) / 1e9, 2) == 15.29
    assert round((row.active_parameters - vocabulary) / 1e9, 2) == 2.24


@pytest.mark.parametrize("model", published_mixtures(), ids=lambda model: model.name)
def test_the_experts_of_a_token_are_as_wide_as_a_dense_layer(model: PublishedMixture) -> None:
    """The granularity that designs copy: exactly so in all but DeepSeek-V2-Lite, which is 3 % narrower."""
    ratio = model.active_width / model.intermediate_size
    assert ratio == (11264 / 10944 if model.name == "DeepSeek-V2-Lite" else 1)


# --- A design --------------------------------------------------------------------------------------------------


def test_the_design_for_five_million_dollars() -> None:
    architecture = design_model(FIVE_MILLION, "deepseek_v3")
    assert architecture.family == "deepseek_v3"
    assert architecture.config == {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "vocab_size": 129280,
        "hidden_size": 7680,
        "intermediate_size": 20736,
        "moe_intermediate_size": 2304,
        "num_hidden_layers": 66,
        "first_k_dense_replace": 3,
        "moe_layer_freq": 1,
        "num_attention_heads": 136,
        "num_key_value_heads": 136,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "n_group": 8,
        "topk_group": 4,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "num_nextn_predict_layers": 1,
        "max_position_embeddings": 4096,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    # Attention: 7680 x 1536 + 1536 + 1536 x 136 x 192 for queries, 7680 x 576 + 512 + 512 x 136 x 256 for keys and
    # values, 136 x 128 x 7680 for the output. An expert has 3 x 7680 x 2304; a dense layer nine times that.
    attention = 11_796_480 + 1536 + 40_108_032 + 4_423_680 + 512 + 17_825_792 + 133_693_440
    expert = 53_084_160
    dense = attention + 9 * expert + 2 * 7680
    used = dense + 7680 * 256  # and the router
    active = 2 * 129_280 * 7680 + 3 * dense + 63 * used + 7680
    assert active == architecture.active_parameters == 47_360_681_472
    assert architecture.parameters == active + 63 * 248 * expert == 876_747_597_312
    assert design_model(FIVE_MILLION, "deepseek_v3") == architecture


def test_the_number_of_experts_grows_with_the_size() -> None:
    # Sparsity is 64 / 6 at 2.661 x 10^9, 256 / 8 at 37.55 x 10^9, and a power of the size in between: at 10 x 10^9
    # 10.67 x 3^(ln(10 / 2.661) / ln(37.55 / 2.661)) = 18.5, of 8 active experts 148, in multiples of 32: 160.
    experts = [
        design_model(size * 10**9, "deepseek_v3").config["n_routed_experts"] for size in (1, 2, 5, 10, 20, 50, 100)
    ]
    assert experts == [64, 64, 96, 160, 192, 256, 256]


def test_what_is_copied_changes_at_one_size() -> None:
    for target, rank in ((int(large_from()), None), (int(large_from()) + 1, 1536)):
        assert design_model(target, "deepseek_v3").config["q_lora_rank"] == rank


def test_each_rule_names_its_value_and_source() -> None:
    rules = design_model(FIVE_MILLION, "deepseek_v3").rules
    assert rules[0].startswith("N is taken as the active parameters, 47,360,681,472 of 876,747,597,312: ")
    assert [rule.split(":")[0].split(" = ")[0].split(",")[0] for rule in rules[2:]] == [
        "hidden size / layers",
        "hidden size 7680",
        "136 heads",
        "latent attention",
        "granularity 9",
        "expert width 2304",
        "sparsity 32.0",
        "first layers dense",
        "sigmoid scores and a correction bias without gradient (arXiv 2412.19437",
        "multi-token prediction",
        "vocabulary 129",
        "what is copied",
        "4",
        "RMSNorm epsilon 1e-6",
    ]


def test_designs_grow_with_the_target() -> None:
    built = [design_model(10**9 * size, "deepseek_v3") for size in (1, 2, 5, 8, 20, 50)]
    assert all(small.active_parameters < large.active_parameters for small, large in pairwise(built))
    assert all(small.parameters < large.parameters for small, large in pairwise(built))


@pytest.mark.parametrize("target", [0, SMALLEST - 1, LARGEST + 1])
def test_a_size_that_the_rules_do_not_hold_for_is_refused(target: int) -> None:
    with pytest.raises(
        UserError, match=rf"deepseek_v3 model of {target:,} active parameters: .* from 1,000,000,000 to"
    ):
        design_model(target, "deepseek_v3")
