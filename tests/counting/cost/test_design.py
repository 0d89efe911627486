"""Models designed for a budget: within 0.5 %, sound, and paid for, from $1,000 to $1 billion."""

from math import log, prod

import msgspec
import pytest

from counting.analysis import Analysis, analyze
from counting.cost.budget import DEFAULT_GPUS, plan_budget
from counting.cost.design import (
    Architecture,
    design_for_budget,
    design_model,
    published_models,
    published_peers,
    resolve_tokens,
)
from counting.cost.hardware import load_gpus
from counting.cost.scaling_laws import LAWS, find_law, predicted_loss
from counting.setup import Setup
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


def test_a_fine_grid_of_sizes_has_no_gap() -> None:
    growth = (10**13 / 250_000_000) ** (1 / 600)
    for step in range(600):
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
        UserError, match=rf"cannot design a model of {target:,} parameters: the design rules hold from 250,000,000 to "
    ):
        design_model(target)


# --- Published models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", published_models(), ids=lambda model: model.name)
def test_a_published_shape_makes_the_published_size(model: object) -> None:
    # 12 L D^2 (Kaplan et al. 2020, table 1) leaves out vocabularies, wide or gated MLPs and narrow keys: a slip of a
    # digit would still show.
    estimate = prod((12, model.layers, model.hidden_size, model.hidden_size))  # type: ignore[attr-defined]
    assert abs(log(estimate / model.parameters)) < log(2.2)  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [1, 10**8, *(model.parameters for model in published_models()), 10**13])
def test_every_size_has_peers_that_span_a_range(size: int) -> None:
    assert len({model.width_to_depth for model in published_peers(size)}) >= 2


def test_beyond_the_table_the_nearest_end_counts() -> None:
    assert published_peers(10**13) == published_peers(published_models()[-1].parameters)


# --- Tokens ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", BUDGETS[::4])
@pytest.mark.parametrize("gpus", [list(DEFAULT_GPUS), ["B200"]], ids=",".join)
def test_the_budget_is_met_and_not_exceeded(gpus: list[str], budget: float) -> None:
    plan = plan_budget(budget, gpus=gpus)
    architecture = design_model(plan.optimal_parameters)
    positions = sizes(architecture)["max_position_embeddings"]
    analysis = analyze(architecture.config, Setup(sequence_length=positions), step=False)
    design = design_for_budget(plan, "designed")
    assert design.parameters == architecture.parameters == analysis.parameters.total
    assert design.training_flops_per_token * positions == 3 * analysis.forward_flops
    assert design.training_flops == design.tokens * design.training_flops_per_token
    assert design.training_flops <= plan.training_flops < design.training_flops + design.training_flops_per_token
    assert design.predicted_loss == predicted_loss(find_law("course"), design.parameters, design.tokens)
    assert design.predicted_loss >= plan.predicted_loss  # attention and the head cost more than 6 N per token
    assert design.tokens_per_parameter == design.tokens / design.parameters


@pytest.fixture(scope="module")
def small() -> Analysis:
    """Of 2 x 10^9 parameters and 101 FLOPs for 10 tokens, whatever is measured."""
    analysis = analyze("llama_7b", Setup(sequence_length=10), step=False)
    parameters = msgspec.structs.replace(analysis.parameters, total=2 * 10**9)
    return msgspec.structs.replace(analysis, parameters=parameters, forward_flops=101)


def test_tokens_by_hand_and_measured_parameters_counted(small: Analysis) -> None:
    # 3 x 101 / 10 tokens: 31 FLOPs per token, rounded up; 1000 / 31 = 32.3
    design = resolve_tokens(design_model(10**9), small, training_flops=1000.0, scaling_law="Course")
    assert (design.training_flops_per_token, design.tokens, design.training_flops) == (31, 32, 992)
    assert (design.parameters, design.relative_error, design.scaling_law) == (2 * 10**9, 1.0, "course")


def test_a_budget_below_one_token_is_refused(small: Analysis) -> None:
    with pytest.raises(UserError, match=r"10 training FLOPs do not pay for one token of this model \(31\)"):
        resolve_tokens(design_model(10**9), small, training_flops=10.0, scaling_law="course")
