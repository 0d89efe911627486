"""Dense Qwen3 designs: the published models at their sizes, and between them within the family's ranges."""

from itertools import pairwise

import pytest

from counting.analysis import count_by_formula
from counting.cost.design import Architecture, design_model
from counting.cost.design.families.qwen3 import PublishedQwen3, published_qwen3, tied_below
from torch_models.errors import UserError
from torch_models.fields.config import spec_from_fields
from torch_models.spec import ModelSpec

FIVE_MILLION = 47_476_210_890
SMALLEST, LARGEST = 500_000_000, 100_000_000_000


def sizes(architecture: Architecture) -> dict[str, int]:
    return {field: value for field, value in architecture.config.items() if isinstance(value, int)}


def check_sound(architecture: Architecture) -> None:
    """The rules, in the test's own words, with the ranges that the six published models span."""
    size = sizes(architecture)
    hidden, layers, heads = size["hidden_size"], size["num_hidden_layers"], size["num_attention_heads"]
    swiglu, tied = size["intermediate_size"], size["tie_word_embeddings"]
    assert (size["head_dim"], size["num_key_value_heads"], size["vocab_size"]) == (128, 8, 151_936)
    assert hidden % (256 if hidden < 2048 else 512 if hidden < 8192 else 1024) == 0
    assert heads % 8 == 0
    assert heads >= 16
    assert 1 <= heads * 128 / hidden <= 2  # Qwen3 1.7B, Qwen3 0.6B
    assert 3 <= swiglu / hidden <= 5  # Qwen3 0.6B, Qwen3 32B
    assert 1024 / 28 <= hidden / layers <= 5120 / 40  # Qwen3 0.6B, Qwen3 14B
    assert swiglu % (128 if hidden < 2048 else 256) == 0
    assert tied == (architecture.target_parameters < 5.7398e9)  # sqrt(4.0225 x 8.1907) = 5.7400

    matrices = 1 if tied else 2
    attention = 2 * hidden * heads * 128 + 2 * hidden * 8 * 128 + 2 * 128
    layer = attention + 3 * hidden * swiglu + 2 * hidden
    assert architecture.parameters == matrices * 151_936 * hidden + layers * layer + hidden
    assert architecture.active_parameters == architecture.parameters
    assert architecture.relative_error == architecture.parameters / architecture.target_parameters - 1
    assert abs(architecture.relative_error) <= 0.005


def read_back(architecture: Architecture) -> ModelSpec:
    spec = spec_from_fields(architecture.config, "design")
    assert (spec.defaulted_fields, spec.ignored_fields) == ((), ())
    return spec


@pytest.mark.parametrize("steps", [60, pytest.param(1000, marks=pytest.mark.sweep)])
def test_a_fine_grid_of_sizes_has_no_gap(steps: int) -> None:
    growth = (LARGEST / SMALLEST) ** (1 / steps)
    for step in range(steps + 1):
        architecture = design_model(min(LARGEST, round(SMALLEST * growth**step)), "qwen3")
        check_sound(architecture)
        if step % 10 == 0:
            assert count_by_formula(read_back(architecture)).total == architecture.parameters


@pytest.mark.parametrize("model", published_qwen3(), ids=lambda model: model.name)
def test_at_a_published_size_the_design_is_that_model(model: PublishedQwen3) -> None:
    architecture = design_model(model.parameters, "qwen3")
    assert architecture.parameters == model.parameters
    fields = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "tie_word_embeddings")
    assert [architecture.config[field] for field in fields] == [getattr(model, field) for field in fields]


# Billions without the embedding and the head: model cards of Qwen/Qwen3-0.6B to Qwen/Qwen3-32B.
WITHOUT_VOCABULARY = {"0.6B": 0.44, "1.7B": 1.4, "4B": 3.6, "8B": 6.95, "14B": 13.2, "32B": 31.2}


@pytest.mark.parametrize("model", published_qwen3(), ids=lambda model: model.name)
def test_a_published_shape_makes_the_published_size(model: PublishedQwen3) -> None:
    printed = WITHOUT_VOCABULARY[model.name.removeprefix("Qwen3 ")]
    vocabulary = (1 if model.tie_word_embeddings else 2) * 151_936 * model.hidden_size
    digits = len(str(printed).partition(".")[2])
    assert round((model.parameters - vocabulary) / 1e9, digits) == printed


def test_the_design_for_five_million_dollars() -> None:
    architecture = design_model(FIVE_MILLION, "qwen3")
    assert architecture.family == "qwen3"
    assert architecture.config == {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 5632,
        "intermediate_size": 27904,
        "num_hidden_layers": 78,
        "num_attention_heads": 72,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 4096,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": 78,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    # Embedding and head 2 x 151936 x 5632. A layer: queries and output 2 x 5632 x 9216, keys and values
    # 2 x 5632 x 1024, their norms 2 x 128, SwiGLU 3 x 5632 x 27904, norms 2 x 5632. The last norm 5632.
    layer = 103_809_024 + 11_534_336 + 256 + 471_465_984 + 11_264
    assert layer == 586_820_864
    assert architecture.parameters == 1_711_407_104 + 78 * layer + 5632 == 47_483_440_128
    assert design_model(FIVE_MILLION, "qwen3") == architecture


def test_small_models_tie_their_head() -> None:
    # The geometric mean of Qwen3 4B, 4.0225 x 10^9, and Qwen3 8B, 8.1907 x 10^9.
    assert tied_below() == pytest.approx(5.7400e9, rel=1e-4)
    for target, tied in ((int(tied_below()), True), (int(tied_below()) + 1, False)):
        assert design_model(target, "qwen3").config["tie_word_embeddings"] is tied


def test_each_rule_names_its_value_and_source() -> None:
    rules = design_model(FIVE_MILLION, "qwen3").rules
    assert [rule.split(":")[0].split(" = ")[0].split(" (")[0] for rule in rules] == [
        "ratios follow the dense models of the family by size, in between by interpolation of their logarithms",
        "hidden size / layers",
        "hidden size 5632",
        "72 query heads of 128 channels, together 1.64 x hidden size",
        "8 key/value heads, and norms of each query and key head",
        "SwiGLU width 27904",
        "vocabulary 151,936",
        "4,096 positions and RoPE base 10,000",
        "RMSNorm epsilon 1e-6, silu and no biases",
    ]
    assert "Qwen3 0.6B, Qwen3 1.7B, Qwen3 4B, Qwen3 8B, Qwen3 14B, Qwen3 32B (arXiv 2505.09388, table 1" in rules[0]


def test_designs_grow_with_the_target() -> None:
    built = [design_model(10**9 * size, "qwen3").parameters for size in (1, 2, 5, 6, 20, 50)]
    assert all(small < large for small, large in pairwise(built))


@pytest.mark.parametrize("target", [0, SMALLEST - 1, LARGEST + 1])
def test_a_size_that_the_rules_do_not_hold_for_is_refused(target: int) -> None:
    with pytest.raises(UserError, match=rf"qwen3 model of {target:,} parameters: .* from 500,000,000 to 100,000,000,0"):
        design_model(target, "qwen3")
