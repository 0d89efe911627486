"""What a rank's layers hold: golden figures, a sum by hand, and the simulation over random models."""

import random

import pytest
from msgspec import structs

from counting.formulas.held import forward_pass
from counting.formulas.local.held import (
    exchanged_experts_held,
    local_embedding_held,
    local_layer_held,
    local_loss_held,
)
from counting.formulas.local.shapes import division_of, local_layer
from counting.formulas.memory import simulate
from counting.measurements.ranks import measure_ranks
from counting.ranks.shallow import shallow
from counting.setup import Setup, resolve
from tests.random_specs import random_division
from tests.sweeps import seeds
from torch_models import read_spec
from torch_models.layout import Layout
from torch_models.spec import GatedMLPSpec, GroupedQueryAttentionSpec, MixtureOfExpertsSpec

LLAMA = read_spec("llama_3_8b_config.json")
DEEPSEEK = read_spec("deepseek_v3_config.json")


def layout_of(tp: int = 1, ep: int = 1, *, sequence_parallel: bool = True, imbalance: float = 1.0) -> Layout:
    return Layout(
        num_gpus=tp * ep,
        dp=1,
        fsdp=ep,
        tp=tp,
        ep=ep,
        sequence_parallel=sequence_parallel,
        expert_imbalance=imbalance,
    )


GOLDEN = [
    (2, 2048, 188_882_968),
    (8, 2048, 72_386_584),
    (8, 8192, 289_546_264),
]


@pytest.mark.parametrize(("tp", "length", "held"), GOLDEN)
def test_layer_of_llama_3_8b(tp: int, length: int, held: int) -> None:
    """Of each of the two blocks' inputs Megatron-LM would hold this rank's positions alone."""
    setup = resolve(Setup(sequence_length=length), LLAMA)
    assert local_layer_held(LLAMA.layers[0], setup, layout_of(tp)) == held
    one_input = 2 * length * 4096
    megatron = {188_882_968: 172_105_752, 72_386_584: 43_026_456, 289_546_264: 172_105_752}[held]
    assert held - 2 * one_input + 2 * one_input // tp == megatron


@pytest.mark.parametrize(("tp", "length", "held"), GOLDEN)
def test_measured_layer_of_llama_3_8b(tp: int, length: int, held: int) -> None:
    setup = resolve(Setup(sequence_length=length), LLAMA)
    assert {layer.held for layer in measure_ranks(LLAMA, setup, layout_of(tp)).layers} == {held}


@pytest.mark.parametrize(("ep", "imbalance"), [(8, 1.0), (64, 1.5)])
def test_measured_layers_of_deepseek_v3(ep: int, imbalance: float) -> None:
    setup = resolve(Setup(sequence_length=4096, mtp=False), DEEPSEEK)
    layout = layout_of(ep=ep, imbalance=imbalance)
    model = shallow(DEEPSEEK)
    held = [local_layer_held(layer, setup, layout) for layer in model.spec.layers]
    assert [layer.held for layer in measure_ranks(DEEPSEEK, setup, layout).layers] == held


def test_layer_of_llama_3_8b_by_hand() -> None:
    """tp 8, T = 2,048, D = 4,096, H C = 4,096, G C = 1,024, F = 14,336."""
    inputs = 2 * (2 * 2048 * 4096)
    norms = 2 * (2 * 256 * 4096 + 4 * 256)
    queries_and_attended = 2 * (2 * 2048 * 512)
    keys_and_values = 2 * (2 * 2048 * 128)
    core = 4 * 2048 * 4 + 24
    mlp = 4 * (2 * 2048 * 1792)
    held = inputs + norms + queries_and_attended + keys_and_values + core + mlp
    assert local_layer_held(LLAMA.layers[0], resolve(Setup(sequence_length=2048), LLAMA), layout_of(8)) == held


def test_without_sequence_parallelism_norms_have_all_tokens() -> None:
    setup = resolve(Setup(sequence_length=2048), LLAMA)
    with_all = local_layer_held(LLAMA.layers[0], setup, layout_of(8, sequence_parallel=False))
    norms = 2 * (2 * 4096 + 4) * (2048 - 256)
    assert with_all == local_layer_held(LLAMA.layers[0], setup, layout_of(8)) + norms


def test_full_recompute_holds_the_positions_of_the_rank() -> None:
    setup = resolve(Setup(sequence_length=2048, recompute="full"), LLAMA)
    assert local_layer_held(LLAMA.layers[0], setup, layout_of(8)) == 2 * 256 * 4096


@pytest.mark.parametrize(("imbalance", "held"), [(1.0, 1_477_246_992), (1.5, 1_980_694_544)])
def test_exchanged_experts_of_deepseek_v3(imbalance: float, held: int) -> None:
    """1.5 times the rows received: 234,881,024 of rows, 268,435,456 between the products, 131,072 of their order."""
    setup = resolve(Setup(sequence_length=4096, mtp=False), DEEPSEEK)
    layout = layout_of(ep=64, imbalance=imbalance)
    experts = DEEPSEEK.layers[-1].feed_forward
    assert isinstance(experts, MixtureOfExpertsSpec)
    assert exchanged_experts_held(experts, forward_pass(setup), division_of(layout)) == held


def test_parts_of_a_layer() -> None:
    part = local_layer(LLAMA.layers[0], 8)
    assert isinstance(part.attention, GroupedQueryAttentionSpec)
    assert isinstance(part.feed_forward, GatedMLPSpec)
    assert (part.attention.num_attention_heads, part.attention.num_key_value_heads) == (4, 1)
    assert (part.feed_forward.intermediate_size, part.hidden_size) == (1792, 4096)


@pytest.mark.parametrize("seed", seeds(40, 600))
def test_formula_is_the_simulation(seed: int) -> None:
    pick = random.Random(seed)
    spec, layout = random_division(pick, seed)
    setup = resolve(
        Setup(
            sequence_length=layout.tp * pick.choice([1, 2, 16, 64]),
            micro_batch_size=pick.choice([1, 2, 3]),
            recompute=pick.choice(["none", "selective", "per_op", "full"]),
            precision=pick.choice(["bf16", "fp32"]),
            kernels=pick.choice(["fused", "eager"]),
            loss_chunk=pick.choice([None, 100]),
        ),
        spec,
    )
    profile = simulate(spec, setup, step=True, layout=layout).step_profile
    assert profile is not None
    assert local_layer_held(spec.layers[0], setup, layout) == profile.layers[0].held
    assert local_embedding_held(spec, setup, layout) == profile.embedding_held
    assert local_loss_held(spec, setup, layout) == profile.loss_held


@pytest.mark.parametrize("seed", seeds(20, 300))
def test_formula_is_the_simulation_of_each_rank_of_cp(seed: int) -> None:
    pick = random.Random(seed)
    spec, layout = random_division(pick, seed)
    if any(isinstance(layer.attention, GroupedQueryAttentionSpec) and layer.attention.sinks for layer in spec.layers):
        pytest.skip("ring attention has no sinks")
    layout = structs.replace(layout, num_gpus=None, cp=pick.choice([2, 3]))
    setup = resolve(
        Setup(
            sequence_length=2 * layout.cp * layout.tp * pick.choice([1, 16]),
            micro_batch_size=pick.choice([1, 2]),
            recompute=pick.choice(["none", "selective", "per_op", "full"]),
            precision=pick.choice(["bf16", "fp32"]),
            loss_chunk=pick.choice([None, 100]),
        ),
        spec,
    )
    for rank in range(layout.cp):
        profile = simulate(spec, setup, step=True, layout=layout, context_rank=rank).step_profile
        assert profile is not None
        assert local_layer_held(spec.layers[0], setup, layout, rank) == profile.layers[0].held
        assert local_embedding_held(spec, setup, layout) == profile.embedding_held
        assert local_loss_held(spec, setup, layout, rank) == profile.loss_held


def test_on_one_rank_it_is_one_device() -> None:
    """A layout that divides nothing leaves what one device holds."""
    setup = resolve(Setup(sequence_length=512), structs.replace(DEEPSEEK, mtp_layers=()))
    spec = structs.replace(DEEPSEEK, mtp_layers=())
    alone = simulate(spec, setup, step=True).step_profile
    assert alone is not None
    assert [local_layer_held(layer, setup, layout_of()) for layer, _ in spec.layer_groups()] == [
        layer.held for layer in alone.layers
    ]
