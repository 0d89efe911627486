"""Published and recomputed figures, each with its source, as golden numbers of what is measured."""

from decimal import Decimal
from math import ceil

import pytest

from counting.analysis import Analysis, analyze
from counting.setup import Setup
from model_training_cost_analysis import (
    get_optimal_N_D_from_cost,
    model_training_cost_analysis_deepseek,
    model_training_cost_analysis_llama,
)
from torch_models import build, build_mtp

LLAMA = "llama_7b_config.json"
LLAMA_3 = "llama_3_8b_config.json"
DEEPSEEK = "deepseek_v3_config.json"


@pytest.fixture(scope="module")
def llama() -> Analysis:
    return analyze(LLAMA)


@pytest.fixture(scope="module")
def deepseek_4096() -> Analysis:
    return analyze(DEEPSEEK, Setup(sequence_length=4096))


def test_llama_7b_parameters(llama: Analysis) -> None:
    # transformers' numel. By hand: 32 layers of 4 D^2 + 3 D F + 2 D, two vocabulary matrices, a norm.
    assert 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 2 * 32000 * 4096 + 4096 == 6_738_415_616
    assert llama.parameters.total == 6_738_415_616
    assert llama.parameters.active == 6_738_415_616
    assert llama.parameters.mtp == llama.parameters.router_correction_bias == 0


def test_llama_7b_layer_flops(llama: Analysis) -> None:
    (layer,) = llama.layers
    # S (8 D^2 + 6 D F + 4 S D) by hand.
    assert 2048 * (8 * 4096**2 + 6 * 4096 * 11008 + 4 * 2048 * 4096) == 897_648_164_864
    assert layer.forward_flops == 897_648_164_864
    assert layer.forward_flops_causal == 863_288_426_496
    assert llama.setup.sequence_length == 2048
    assert llama.setup.sequence_length_source == "max_sequence_length"


def test_llama_7b_layer_weights(llama: Analysis) -> None:
    (layer,) = llama.layers
    assert layer.parameters == 202_383_360
    assert layer.peak_memory_parts.weights == 404_766_720


def test_llama_7b_whole_forward_and_training(llama: Analysis) -> None:
    assert round(Decimal(llama.forward_flops) / 10**12, 4) == Decimal("29.2616")
    assert round(Decimal(llama.forward_flops_causal) / 10**12, 3) == Decimal("28.162")
    training_flops_per_token = Decimal(3 * llama.forward_flops) / 2048
    assert round(training_flops_per_token / 10**9, 2) == Decimal("42.86")


def test_llama_3_8b_parameters_and_layer_flops() -> None:
    analysis = analyze(LLAMA_3)
    (layer,) = analysis.layers
    assert analysis.parameters.total == 8_030_261_248  # also the published checkpoint's total
    assert analysis.setup.sequence_length == 8192
    assert analysis.setup.sequence_length_source == "max_position_embeddings"
    assert layer.forward_flops == 4_672_924_418_048
    assert layer.forward_flops_causal == 4_123_168_604_160


def test_deepseek_v3_parameters(deepseek_4096: Analysis) -> None:
    parameters = deepseek_4096.parameters
    assert parameters.total == 671_026_404_352
    assert parameters.router_correction_bias == 58 * 256 == 14_848
    assert parameters.total + parameters.router_correction_bias == 671_026_419_200  # as published
    assert parameters.active == 37_552_282_624
    assert round(Decimal(parameters.active_without_embedding) / 10**9, 2) == Decimal("36.63")
    assert round(Decimal(parameters.active_without_vocabulary) / 10**9, 2) == Decimal("35.70")


def test_gemma_4_26b_a4b_parameters() -> None:
    """transformers' text model, by `numel`; of 128 experts of 3 x 2816 x 704 in each of 30 layers a token uses 8."""
    parameters = analyze("gemma_4_26b_a4b", Setup(sequence_length=2048), step=False).parameters
    assert parameters.total == 25_233_141_760
    assert parameters.total - 30 * 120 * 3 * 2816 * 704 == parameters.active == 3_822_530_560


def test_deepseek_v3_multi_token_prediction(deepseek_4096: Analysis) -> None:
    parameters = deepseek_4096.parameters
    # The checkpoint's 11,610,068,224 numbers are 256 of the correction bias and the rest trainable.
    assert parameters.mtp_router_correction_bias == 256
    assert parameters.mtp + parameters.mtp_router_correction_bias == 11_610_068_224
    moe = next(layer for layer in deepseek_4096.layers if layer.kind == "moe")
    assert parameters.mtp - moe.parameters == 102_781_952 == 2 * 7168**2 + 3 * 7168  # eh_proj and three norms


# Matrices that DeepSeek-V3's checkpoint holds in fp8 (how many, rows, columns), one scale for each 128 x 128 numbers:
# the count of scales, 41,540,496, is right with these alone, and wrong with multi-token prediction's projection.
HEADS, ALL_LAYERS, MOE_LAYERS, DENSE_LAYERS = 128, 61 + 1, 58 + 1, 3
FP8_MATRICES = [
    (ALL_LAYERS, 1536, 7168),
    (ALL_LAYERS, HEADS * 192, 1536),
    (ALL_LAYERS, 512 + 64, 7168),
    (ALL_LAYERS, HEADS * 256, 512),
    (ALL_LAYERS, 7168, HEADS * 128),
    (3 * DENSE_LAYERS, 18432, 7168),
    (3 * MOE_LAYERS * (256 + 1), 2048, 7168),
]


def test_deepseek_v3_linear_weights(deepseek_4096: Analysis) -> None:
    parameters = deepseek_4096.parameters
    in_fp8 = sum(count * rows * columns for count, rows, columns in FP8_MATRICES)
    assert parameters.linear_weights + parameters.mtp_linear_weights == in_fp8


def test_deepseek_v3_checkpoint_total(deepseek_4096: Analysis) -> None:
    parameters = deepseek_4096.parameters
    vocabulary_matrix = parameters.by_component["word_embedding"]
    main = parameters.total + parameters.router_correction_bias
    mtp = parameters.mtp + parameters.mtp_router_correction_bias
    fp8_scales = sum(count * ceil(rows / 128) * ceil(columns / 128) for count, rows, columns in FP8_MATRICES)
    assert fp8_scales == 41_540_496
    assert main + mtp + 2 * vocabulary_matrix + fp8_scales == 684_531_386_000


@pytest.mark.parametrize(
    ("sequence_length", "dense", "moe"),
    [
        (4_096, 6_154_151_264_256, 6_169_183_649_792),
        (163_840, 2_390_213_724_733_440, 2_390_815_020_154_880),
    ],
)
def test_deepseek_v3_layer_flops(sequence_length: int, dense: int, moe: int) -> None:
    layers = analyze(DEEPSEEK, Setup(sequence_length=sequence_length), step=False).layers
    assert [(layer.kind, layer.count, layer.forward_flops) for layer in layers] == [
        ("dense", 3, dense),
        ("moe", 58, moe),
    ]


def test_deepseek_v3_dense_and_moe_layers_differ_by_the_router_alone(deepseek_4096: Analysis) -> None:
    dense, moe = deepseek_4096.layers  # (8 + 1) x 2048 = 18432
    assert moe.forward_flops - dense.forward_flops == moe.forward_flops_by_component["router"]


def test_deepseek_v3_whole_forward() -> None:
    analysis = analyze(DEEPSEEK, Setup(sequence_length=2048), step=False)
    assert round(Decimal(analysis.forward_flops) / 10**12, 4) == Decimal("170.9738")
    assert round(Decimal(analysis.forward_flops_causal) / 10**12, 3) == Decimal("160.494")


def test_deepseek_v3_was_pre_trained_at_4096_tokens() -> None:
    """Its config is for 163,840 positions, which YaRN stretched the 4,096 to."""
    setup = analyze(DEEPSEEK, step=False).setup
    assert (setup.sequence_length, setup.sequence_length_source) == (
        4_096,
        "rope_scaling.original_max_position_embeddings",
    )


@pytest.mark.parametrize(
    ("config", "parameters"), [(LLAMA, 6_738_415_616), (LLAMA_3, 8_030_261_248), (DEEPSEEK, 671_026_404_352)]
)
def test_the_whole_model_built_has_these_parameters(config: str, parameters: int) -> None:
    assert sum(parameter.numel() for parameter in build(config, device="meta").parameters()) == parameters


def test_the_mtp_module_built_has_these_parameters() -> None:
    layers = build_mtp(DEEPSEEK, device="meta")
    numbers = [tensor.numel() for tensor in layers.state_dict().values()]
    assert sum(numbers) == 11_610_068_224


def test_three_functions_by_name() -> None:
    parameters, tflops, gigabytes = model_training_cost_analysis_llama(LLAMA)
    assert (parameters, tflops) == (6_738_415_616, 0.897648164864)
    assert gigabytes == analyze(LLAMA).layers[0].peak_memory_bytes / 10**9

    parameters, tflops, gigabytes = model_training_cost_analysis_deepseek(DEEPSEEK)
    assert (parameters, tflops) == (671_026_404_352, 6.169183649792)
    assert gigabytes == analyze(DEEPSEEK).layers[1].peak_memory_bytes / 10**9

    optimal_n, optimal_d, flops, best_gpu = get_optimal_N_D_from_cost(5_000_000)
    assert best_gpu == "A100"
    assert flops == 5.616e23
    assert f"{optimal_n:.7e}" == "4.7476211e+10"
    assert f"{optimal_d:.7e}" == "1.9715137e+12"
