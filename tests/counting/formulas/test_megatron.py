"""What a rank holds by Megatron-LM's rules: the paper's figures, by hand, and beside torch's."""

from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from msgspec import structs

from counting.analysis import analyze
from counting.formulas.local.held import local_layer_held
from counting.formulas.megatron import (
    megatron_classes,
    megatron_layer_held,
    megatron_loss_held,
    megatron_states,
    passes_in_flight,
)
from counting.layout import resolve_layout
from counting.ranks.result import RankAnalysis
from counting.setup import Setup, resolve
from torch_models import read_spec
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout
from torch_models.spec import ModelSpec

GIB = 2**30
LLAMA_3 = read_spec("llama_3_8b")


def of_the_paper(*, layers: int, width: int, heads: int) -> ModelSpec:
    """A model of Korthikanti et al. 2022, with a gated MLP of 8 h / 3 in place of one of 4 h: as many numbers held.

    The paper's MLP holds its 4 h before and after GeLU, 16 s b h bytes; this one gate, other factor and product.
    """
    fields = {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": 8 * width // 3,
        "vocab_size": 51_200,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "rope_theta": 10_000.0,
    }
    return spec_from_fields(fields, "of the paper")


MODEL_22B = of_the_paper(layers=48, width=6144, heads=64)
MODEL_175B = of_the_paper(layers=96, width=12288, heads=96)


def of(spec: ModelSpec, layout: Layout, **setup: Any) -> tuple[RankAnalysis, ...]:
    layout = structs.replace(layout, framework="megatron", zero=1)
    found = resolve(Setup(**setup), spec, data_ranks=layout.fsdp * (layout.dp or 1))
    return megatron_classes(spec, found, resolve_layout(layout, spec, found))


def layer_of_the_paper(spec: ModelSpec, setup: Setup, tp: int) -> int:
    """A layer's bytes with the two masks of dropout, and without what flash attention and norms keep in fp32.

    The paper's layer drops out after attention and after the MLP, and counts no numbers that are few.
    """
    held = megatron_layer_held(spec.layers[0], setup, Layout(tp=tp, dp=1, framework="megatron"))
    heads = spec.layers[0].attention.num_attention_heads // tp
    log_sum_exp, state, inverse_rms = 4 * heads * setup.tokens, 24, 4 * setup.tokens // tp
    masks = 2 * setup.tokens * spec.hidden_size // tp
    return held - log_sum_exp - state - 2 * inverse_rms + masks


@pytest.mark.parametrize(("spec", "sequences"), [(MODEL_22B, 4), (MODEL_175B, 1)])
def test_a_layer_of_the_paper_holds_34_sbh_over_t(spec: ModelSpec, sequences: int) -> None:
    setup = resolve(Setup(micro_batch_size=sequences), spec)
    assert layer_of_the_paper(spec, setup, 8) == 34 * 2048 * sequences * spec.hidden_size // 8


def test_the_22b_model_of_the_paper() -> None:
    """48 layers on 8 ranks of tp: 9.5625 GiB of activations; 18 bytes of each of a layer's 12 h^2 numbers, 45.5625."""
    setup = resolve(Setup(micro_batch_size=4), MODEL_22B)
    assert 48 * layer_of_the_paper(MODEL_22B, setup, 8) == 9.5625 * GIB
    (ranks,) = of(MODEL_22B, Layout(tp=8), micro_batch_size=4)
    outside = (2 * 51_200 * 6144 // 8) + 6144 + 48 * 2 * 6144  # embedding and head; norms are whole on each rank
    assert ranks.memory.states.total - 18 * outside == 45.5625 * GIB


def test_the_first_stage_of_the_175b_model_of_the_paper() -> None:
    """8 ranks of pp with 3 stages each: 31 passes in flight of 4 layers, 12.3516 GiB."""
    setup = resolve(Setup(micro_batches=64), MODEL_175B)
    layout = Layout(tp=8, pp=8, schedule="interleaved", stages_per_rank=3, framework="megatron")
    flight = passes_in_flight(layout, 0, 64)
    assert flight == Counter({0: 15, 8: 8, 16: 8})
    held = flight.total() * 4 * layer_of_the_paper(MODEL_175B, setup, 8)
    assert held == 13_262_389_248
    assert round(held / GIB, 4) == 12.3516


@pytest.mark.parametrize(
    ("spec", "sequences", "passes", "gib"),
    [(MODEL_22B, 4, 48, 59.25), (MODEL_175B, 1, 31 * 4, 66.84375)],
)
def test_the_paper_without_sequence_parallelism_and_with_scores(
    spec: ModelSpec, sequences: int, passes: int, gib: float
) -> None:
    """s b h (10 + 24 / t) bytes, and 5 a s^2 b / t of the scores, which no fused kernel holds."""
    setup = resolve(Setup(micro_batch_size=sequences), spec)
    layout = Layout(tp=8, dp=1, sequence_parallel=False, framework="megatron")
    heads, few = spec.layers[0].attention.num_attention_heads, 24 + 2 * 4 * setup.tokens
    held = megatron_layer_held(spec.layers[0], setup, layout) - 4 * heads // 8 * setup.tokens - few
    masks = 2 * setup.tokens * spec.hidden_size
    assert held + masks == setup.tokens * spec.hidden_size * (10 + 24 // 8)
    assert passes * (held + masks + 5 * heads * 2048 * setup.tokens // 8) == gib * GIB


@pytest.mark.parametrize(("pp", "each"), [(2, 2), (4, 3), (8, 3), (8, 5), (16, 2)])
def test_interleaved_stages_hold_the_papers_factor(pp: int, each: int) -> None:
    layout = Layout(pp=pp, schedule="interleaved", stages_per_rank=each, framework="megatron")
    factor = 1 + Fraction(pp - 1, pp * each)
    assert Fraction(passes_in_flight(layout, 0, 100 * pp).total(), each) == pp * factor


@pytest.mark.parametrize(
    ("layout", "rank", "micro_batches", "expected"),
    [
        (Layout(), 0, 8, {0: 1}),
        (Layout(pp=4), 0, 8, {0: 4}),
        (Layout(pp=4), 3, 8, {3: 1}),
        (Layout(pp=4), 0, 2, {0: 2}),
        (Layout(pp=2, schedule="interleaved"), 0, 4, {0: 3, 2: 2}),
        (Layout(pp=2, schedule="interleaved"), 1, 4, {1: 2, 3: 1}),
        (Layout(pp=4, schedule="interleaved"), 0, 4, {0: 4, 4: 4}),
    ],
)
def test_passes_in_flight(layout: Layout, rank: int, micro_batches: int, expected: dict[int, int]) -> None:
    assert passes_in_flight(layout, rank, micro_batches) == expected


@pytest.mark.parametrize(
    ("tp", "length", "regathered"), [(2, 2048, 172_105_752), (8, 2048, 43_026_456), (8, 8192, 172_105_752)]
)
def test_a_layer_of_llama_3_8b(tp: int, length: int, regathered: int) -> None:
    """Inputs are gathered again in backward; of the gated MLP, F / tp = 14,336 / tp numbers a token less are held."""
    setup = resolve(Setup(sequence_length=length), LLAMA_3)
    layout = Layout(tp=tp, dp=1, framework="megatron")
    held = megatron_layer_held(LLAMA_3.layers[0], setup, layout)
    assert held == regathered - 2 * length * 14_336 // tp
    without = megatron_layer_held(LLAMA_3.layers[0], setup, structs.replace(layout, sequence_parallel=False))
    of_torch = local_layer_held(LLAMA_3.layers[0], setup, structs.replace(layout, sequence_parallel=False))
    assert without == of_torch - 2 * length * 14_336 // tp, "nothing is gathered"


def test_full_recompute_keeps_the_input_alone() -> None:
    setup = resolve(Setup(sequence_length=2048, recompute="full"), LLAMA_3)
    layout = Layout(tp=8, dp=1, framework="megatron")
    assert megatron_layer_held(LLAMA_3.layers[0], setup, layout) == 2 * 2048 * 4096 // 8
    (ranks,) = of(LLAMA_3, Layout(tp=8), sequence_length=2048, recompute="full")
    whole = megatron_layer_held(LLAMA_3.layers[0], structs.replace(setup, recompute="none"), layout)
    assert ranks.memory.phases[0].transients == whole


def test_the_head_of_llama_3_8b() -> None:
    """tp 8, T = 8,192: log-probabilities of 16,032 words in fp32; inputs of norm and head in 16 bits, of T / 8."""
    setup = resolve(Setup(sequence_length=8192), LLAMA_3)
    held = megatron_loss_held(LLAMA_3, setup, Layout(tp=8, dp=1, framework="megatron"))
    of_head = 2 * 1024 * 4096 + 4 * 8192 * 16_032 + 4 + 8
    of_norm = 4 * 1024  # its input is the last layer's output
    loss = 4
    assert held == of_head + of_norm + loss


@pytest.mark.parametrize(("shards", "total"), [(1, 18_000), (2, 12_000), (8, 7_500), (3, 6_000 + 12 * 334)])
def test_the_optimiser_is_divided_and_nothing_else(shards: int, total: int) -> None:
    states = megatron_states(1_000, shards)
    assert states.total == total
    assert (states.weights, states.gradients) == (2_000, 4_000)


def test_parameters_of_all_stages_are_those_of_the_model() -> None:
    (whole,) = of(LLAMA_3, Layout(), sequence_length=64)
    assert whole.parameters == 8_030_261_248
    stages = of(LLAMA_3, Layout(pp=4), sequence_length=64, micro_batches=4)
    assert sum(each.parameters for each in stages) == whole.parameters
    assert sum(each.model_flops for each in stages) == 4 * whole.model_flops
    assert [each.first_rank for each in stages] == [0, 1, 2, 3]
    assert [each.in_flight for each in stages] == [4, 3, 2, 1]
    assert stages[0].parameters > stages[1].parameters == stages[2].parameters
    assert stages[3].parameters == stages[0].parameters + 4096, "the final norm"


def test_a_head_that_is_the_embedding_is_in_both_ends() -> None:
    tied = read_spec("llama_3_2_1b")
    (whole,) = of(tied, Layout(), sequence_length=64)
    assert whole.parameters == 1_235_814_400
    stages = of(tied, Layout(pp=2), sequence_length=64, micro_batches=2)
    assert sum(each.parameters for each in stages) == whole.parameters + 128_256 * 2048


def test_ranks_of_cp_divide_positions_and_states() -> None:
    (alone,) = of(LLAMA_3, Layout(fsdp=2), sequence_length=8192)
    (two,) = of(LLAMA_3, Layout(fsdp=2, cp=2), sequence_length=8192)
    assert two.memory.states == megatron_states(8_030_261_248, 4)
    assert two.model_flops * 2 == alone.model_flops
    assert two.memory.peak_bytes < alone.memory.peak_bytes


def test_it_is_the_result_of_an_analysis() -> None:
    layout = Layout(num_gpus=64, tp=4, pp=4, schedule="interleaved", fsdp=2, framework="megatron")
    analysis = analyze("llama_3_8b", Setup(sequence_length=4096, micro_batches=16), layout=layout)
    assert analysis.rank_classes == of(LLAMA_3, layout, sequence_length=4096, micro_batches=16)
    assert analysis.rank_classes is not None
    assert {each.proof for each in analysis.rank_classes} == {"by formula, an estimate"}
    assert analysis.undivided is None
    assert analysis.layout is not None
    assert (analysis.layout.zero, analysis.layout.replicas, analysis.layout.framework) == (1, 2, "megatron")
    assert sum(each.count for each in analysis.rank_classes) == 64
    again = analyze("llama_3_8b", Setup(sequence_length=4096, micro_batches=16), layout=layout, reserved=True)
    assert again.rank_classes == analysis.rank_classes, "no step that torch's allocator could be asked for"


# Measured on 8 B200 with Megatron-LM, sequences of 4,096 tokens, 4 micro-batches of one, nothing recomputed: GiB
# allocated at the peak, of 12 layers of Llama-3-70B. SimuMax, docs/b200/b200_release_v1.2_summary.md.
MEASURED = {(2, 1, 4): 60.68, (4, 1, 2): 39.07, (8, 1, 1): 28.29, (1, 2, 4): 66.55}


@pytest.mark.parametrize(("axes", "measured"), MEASURED.items())
def test_what_is_held_is_a_little_less_than_a_measured_peak(axes: tuple[int, int, int], measured: float) -> None:
    tp, pp, data = axes
    spec = read_spec("llama_3_70b")
    spec = structs.replace(spec, layer_runs=(structs.replace(spec.layer_runs[0], count=12),))
    ranks = of(spec, Layout(tp=tp, pp=pp, fsdp=data), sequence_length=4096, micro_batches=4)
    held = max(each.memory.peak_bytes for each in ranks)
    assert 0.965 * measured < held / GIB < 0.985 * measured
