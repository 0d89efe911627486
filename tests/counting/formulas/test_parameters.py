"""Parameters in closed form: published totals, and the sums by hand."""

import pytest

from counting.counts import Counts
from counting.formulas.parameters import (
    frozen_parameters,
    inactive_parameters,
    latent_attention_matrices,
    linear_weights,
    mtp_parameters,
    outside_parameters,
    parameters,
    router_correction_bias,
)
from tests.shrunken import FAMILIES
from torch_models.fields.config import read_spec, spec_from_fields
from torch_models.spec import ModelSpec, MultiHeadLatentAttentionSpec


# Totals that the published checkpoints have.
@pytest.mark.parametrize(
    ("config", "total"),
    [
        ("llama_7b", 6_738_415_616),
        ("llama_3_8b", 8_030_261_248),
        ("mixtral_8x7b", 46_702_792_704),
        ("deepseek_v3", 671_026_404_352),
        ("gpt_oss_20b", 20_914_757_184),
        # 48 layers of 62,914,560 in attention, 16 + 1 experts of 125,829,120, a router of 81,920 and norms of 10,240; a
        # norm of 5,120; embedding and head of 1,034,485,760. Maverick: half of the layers have 128 + 1 experts and a
        # router of 655,360, half an MLP of 251,658,240.
        ("llama_4_scout", 107_769_861_120),
        ("llama_4_maverick", 400_711_848_960),
        ("smollm2_135m", 134_515_008),
        ("gemma_7b", 8_537_680_896),
        ("gemma_3_27b", 27_009_346_304),  # of 27,432,406,640 with the vision tower and its projection
        ("gemma_4_26b_a4b", 25_233_141_760),
        ("olmo_3_7b", 7_298_011_136),
        ("olmo_3_32b", 32_233_522_176),
        ("smollm3_3b", 3_075_098_624),
    ],
)
def test_published_totals(config: str, total: int) -> None:
    assert parameters(read_spec(config)).total == total


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_its_layers_and_what_stands_outside_them(family: str) -> None:
    spec = spec_from_fields(FAMILIES[family], "shrunken")
    layers = sum((parameters(layer) for layer in spec.layers), Counts())
    assert parameters(spec) == layers + outside_parameters(spec)


def test_a_tied_head_is_the_embedding() -> None:
    """135M: 49152 x 576 once, and a norm of 576."""
    assert outside_parameters(read_spec("smollm2_135m")) == Counts(word_embedding=49152 * 576, norm=576)
    assert outside_parameters(read_spec("llama_7b")) == Counts(
        word_embedding=32000 * 4096, norm=4096, lm_head=32000 * 4096
    )


def deepseek_v3() -> ModelSpec:
    return read_spec("deepseek_v3")


def test_matrices_of_latent_attention() -> None:
    attention = deepseek_v3().layers[0].attention
    assert isinstance(attention, MultiHeadLatentAttentionSpec)
    assert latent_attention_matrices(attention) == [
        (7168, 1536),
        (1536, 128 * 192),
        (7168, 512 + 64),
        (512, 128 * 256),
        (128 * 128, 7168),
    ]
    assert linear_weights(attention) == 187_105_280


def test_of_a_layer_of_experts() -> None:
    """248 of 256 experts of 3 x 7168 x 2048 are idle for a token; a correction bias of 256 is no parameter."""
    moe = deepseek_v3().layers[-1]
    assert inactive_parameters(moe) == 248 * 3 * 7168 * 2048
    assert router_correction_bias(moe) == 256
    assert parameters(moe).router == 256 * 7168
    dense = deepseek_v3().layers[0]
    assert (inactive_parameters(dense), router_correction_bias(dense)) == (0, 0)


def test_of_sparse_attention() -> None:
    """Numel of transformers' modules. An indexer: 1536 x 64 x 128 + 7168 x 128 + 7168 x 64, and a LayerNorm of 128."""
    spec = read_spec("deepseek_v3_2")
    assert parameters(spec).total == 671_877_929_216
    assert parameters(spec.layers[0]).indexer == 1536 * 64 * 128 + 7168 * 128 + 7168 * 64
    assert frozen_parameters(spec.layers[0]) == parameters(spec.layers[0]).indexer + 2 * 128
    glm_5 = read_spec("glm_5")
    assert parameters(glm_5).total == 743_911_199_232
    assert sum(map(inactive_parameters, glm_5.layers)) == 743_911_199_232 - 41_784_709_632


def test_of_a_gated_shared_expert() -> None:
    """Qwen1.5-MoE: three matrices of 2048 x 5632 and a gate of 2048 numbers, which is no matrix that fp8 stores."""
    (moe,) = {run.layer for run in read_spec("qwen1_5_moe_a2_7b").layer_runs}
    assert parameters(moe).shared_experts == 3 * 2048 * 5632 + 2048
    experts = 60 * 3 * 2048 * 1408
    assert linear_weights(moe) == 4 * 2048 * 2048 + experts + 3 * 2048 * 5632


def test_multi_token_prediction_is_a_layer_a_projection_and_three_norms() -> None:
    spec = deepseek_v3()
    (layer,) = spec.mtp_layers
    assert mtp_parameters(spec) == parameters(layer) + Counts(mlp=2 * 7168 * 7168, norm=3 * 7168)
    assert mtp_parameters(read_spec("llama_7b")) == Counts()
