"""Llama designs for a budget: within 0.5 % and sound, from $1,000 to $1 billion."""

import msgspec
import pytest

from counting.cost.budget import DEFAULT_GPUS, plan_budget
from counting.cost.design import Architecture, design_model, published_peers
from counting.cost.hardware import load_gpus
from counting.cost.scaling_laws import LAWS
from torch_models.errors import UserError

PRICED = [gpu.name for gpu in load_gpus() if gpu.price_usd_per_hour is not None]
GPU_SETS = [list(DEFAULT_GPUS), *([name] for name in PRICED)]
BUDGETS = [10 ** (3 + step / 4) for step in range(25)]  # $1,000 to $1 billion
FIVE_MILLION = 47_476_210_890


def sizes(architecture: Architecture) -> dict[str, int]:
    return {field: value for field, value in architecture.config.items() if isinstance(value, int)}


def check_sound(architecture: Architecture) -> None:
    """The rules, in the test's own words."""
    size = sizes(architecture)
    hidden, layers, heads = size["hidden_size"], size["num_hidden_layers"], size["num_attention_heads"]
    groups, swiglu, vocabulary = size["num_key_value_heads"], size["intermediate_size"], size["vocab_size"]
    assert size["head_dim"] == 128
    assert hidden % 256 == 0
    assert hidden == heads * 128
    assert heads % groups == 0
    assert 2 <= groups <= 8
    assert groups < heads
    assert groups == 8 or hidden < 8192
    assert swiglu % 256 == 0
    assert abs(swiglu - 8 / 3 * hidden) <= max(256, 0.05 * 8 / 3 * hidden)
    ratios = [model.hidden_size / model.layers for model in published_peers(architecture.target_parameters)]
    assert min(ratios) <= hidden / layers <= max(ratios)

    matrices = 1 if size["tie_word_embeddings"] else 2
    layer = 2 * hidden * hidden + 2 * hidden * groups * 128 + 3 * hidden * swiglu + 2 * hidden
    assert architecture.parameters == matrices * vocabulary * hidden + layers * layer + hidden
    assert architecture.relative_error == architecture.parameters / architecture.target_parameters - 1
    assert abs(architecture.relative_error) <= 0.005


@pytest.mark.parametrize("mfu", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("gpus", GPU_SETS, ids=",".join)
def test_every_budget_has_a_sound_design(gpus: list[str], mfu: float) -> None:
    for budget in BUDGETS:
        check_sound(design_model(plan_budget(budget, gpus=gpus, mfu=mfu).optimal_parameters))


@pytest.mark.parametrize("law", [law.name for law in LAWS])
def test_every_law_has_a_sound_design(law: str) -> None:
    for gpu, mfu in (("V100", 0.1), ("H800", 1.0)):
        for budget in BUDGETS:
            check_sound(design_model(plan_budget(budget, gpus=[gpu], mfu=mfu, scaling_law=law).optimal_parameters))


@pytest.mark.parametrize("steps", [100, pytest.param(600, marks=pytest.mark.sweep)])
def test_a_fine_grid_of_sizes_has_no_gap(steps: int) -> None:
    growth = (10**13 / 250_000_000) ** (1 / steps)
    for step in range(steps):
        check_sound(design_model(round(250_000_000 * growth**step)))


def test_the_design_for_five_million_dollars() -> None:
    architecture = design_model(FIVE_MILLION)
    assert architecture.config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 8192,
        "intermediate_size": 21760,
        "num_hidden_layers": 66,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 8192,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    # Embedding and head 2 x 128256 x 8192; a layer 2.25 x 8192^2 + 3 x 8192 x 21760 + 2 x 8192; the last norm 8192.
    assert architecture.parameters == 2_101_346_304 + 66 * 685_785_088 + 8192 == 47_363_170_304
    assert design_model(FIVE_MILLION) == architecture


def test_the_config_is_read_back_as_it_was_written() -> None:
    architecture = design_model(FIVE_MILLION)
    text = architecture.config_json()
    assert text.endswith("}\n")
    assert msgspec.json.decode(text) == architecture.config


@pytest.mark.parametrize(("target", "tied", "positions"), [(4_999_999_999, True, 2048), (5_000_000_000, False, 8192)])
def test_small_models_tie_their_head(target: int, tied: bool, positions: int) -> None:
    config = design_model(target).config
    assert (config["tie_word_embeddings"], config["max_position_embeddings"]) == (tied, positions)
    assert (config["vocab_size"] == 128_256) is not tied


def test_each_rule_names_its_value_and_source() -> None:
    rules = design_model(FIVE_MILLION).rules
    assert [rule.split(":")[0].split(" = ")[0] for rule in rules] == [
        "hidden size / layers",
        "hidden size 8192",
        "head_dim 128",
        "64 query heads share 8 key/value heads (Ainslie et al. 2023, arXiv 2305.13245)",
        "SwiGLU width 21760",
        "vocabulary 128,256",
        "RMSNorm epsilon 1e-5, silu and no biases",
    ]
    assert rules[0].startswith("hidden size / layers = 124: within 80 to 140 (mean 105) of published models")
    assert rules[0].endswith("GPT-NeoX 20B, Llama-1 33B, Qwen2.5 32B, Llama-1 65B, Llama-3 70B, Qwen2.5 72B")


@pytest.mark.parametrize("target", [0, 1, 249_999_999, 10**13 + 1])
def test_a_size_that_the_rules_do_not_hold_for_is_refused(target: int) -> None:
    with pytest.raises(
        UserError,
        match=rf"cannot design a llama model of {target:,} parameters: its design rules hold from 250,000,000 to ",
    ):
        design_model(target)
