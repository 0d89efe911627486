"""Goldens of a prototype that shared no code with this project; one micro-batch, fused kernels, "mixed", AdamW."""

import pytest
from msgspec import structs

from counting.formulas.layouts import ranks_by_formula
from counting.formulas.layouts.groups import layer_shapes
from counting.formulas.layouts.sharding import numbers
from counting.ranks.profile import RankPhase
from counting.ranks.result import RankAnalysis, RankCollective
from tests.counting.formulas.layouts.cases import DEEPSEEK, LLAMA, first_class, layout_of, setup_of, shortened
from torch_models.spec import ModelSpec, runs_of


def called(found: RankAnalysis, phase: RankPhase, op: str, axis: str) -> RankCollective:
    (only,) = (each for each in found.collectives if (each.phase, each.op, each.axis) == (phase, op, axis))
    return only


# Shards -> parameters in fp32, moments with step counts, gathered in forward and in backward (bytes written), reduced
# (bytes read), gradients, peak; two layers of Llama-3-8B, 2,048 tokens.
#
# By hand, 8 shards: a layer has 218,112,000 parameters, the root 2 x 128,256 x 4,096 + 4,096 = 1,050,677,248; all sizes
# divide by 8. A rank stores 4 x (2 x 218,112,000 + 1,050,677,248) / 8 = 743,450,624 bytes; AdamW twice as much, and 4
# bytes for each of 2 x 9 + 3 tensors: 1,486,901,248 + 84. Gathered are 2 bytes for each parameter in forward, and the
# layers again in backward: 2 x 2 x 218,112,000 = 872,448,000. Reduced are 4 bytes for each.
SHARDED = {
    8: (743_450_624, 1_486_901_332, 2_973_802_496, 872_448_000, 5_947_604_992, 743_450_624, 8_753_084_508),
    64: (92_931_328, 185_862_740, 2_973_802_496, 872_448_000, 5_947_604_992, 92_931_328, 6_690_934_668),
    100: (59_589_428, 119_178_940, 2_979_471_400, 877_396_000, 5_958_942_800, 59_589_428, 6_594_103_872),
    4096: (1_556_500, 3_113_084, 3_187_712_000, 1_040_220_160, 6_375_424_000, 1_556_500, 6_546_833_608),
}


@pytest.mark.parametrize("shards", SHARDED)
def test_two_layers_sharded(shards: int) -> None:
    found = first_class(shortened(LLAMA, 2), layout_of(fsdp=shards), sequence_length=2048)
    states = found.memory.states
    numbers = (
        states.weights,
        states.moments,
        called(found, "forward", "all_gather", "fsdp").bytes_out,
        called(found, "backward", "all_gather", "fsdp").bytes_out,
        called(found, "backward", "reduce_scatter", "fsdp").bytes_in,
        states.gradients,
        found.memory.peak_bytes,
    )
    assert numbers == SHARDED[shards]
    assert states.masters == 0
    assert len(found.collectives) == 3


def test_replicas() -> None:
    """8 replicas of 8 shards: as 8 shards, and each group's part of the gradients is reduced over the replicas."""
    found = first_class(shortened(LLAMA, 2), layout_of(dp=8, fsdp=8), sequence_length=2048)
    alone = first_class(shortened(LLAMA, 2), layout_of(fsdp=8), sequence_length=2048)
    summed = called(found, "backward", "all_reduce", "dp")
    assert (summed.count, summed.bytes_in, summed.bytes_out) == (3, 743_450_624, 743_450_624)
    assert [each for each in found.collectives if each != summed] == list(alone.collectives)
    assert found.memory == alone.memory
    assert (found.memory.peak_bytes, found.count) == (8_753_084_508, 64)


def test_all_layers_sharded() -> None:
    """Llama-3-8B on 64 ranks at 8,192 tokens; 32 layers."""
    found = first_class(LLAMA, layout_of(fsdp=64), sequence_length=8192)
    states = found.memory.states
    assert (states.weights, states.gradients, states.moments) == (501_891_328, 501_891_328, 1_003_783_820)
    assert called(found, "forward", "all_gather", "fsdp").bytes_out == 16_060_522_496
    assert called(found, "backward", "all_gather", "fsdp").bytes_out == 13_959_168_000
    assert called(found, "backward", "reduce_scatter", "fsdp").bytes_in == 32_121_044_992
    assert found.memory.peak_bytes == 60_846_877_332


def test_all_layers_sharded_in_the_groups_of_torchtitan() -> None:
    """The prototype found 59,359,980,180 bytes with a head that returned logits.

    This head returns the loss, so torch's hook before its backward pass, which gathers the last layer's parameters,
    runs before the loss is differentiated and not after: at the peak, in the loss, there is one flat buffer more, of
    218,112,000 parameters in 16 bits, 436,224,000 bytes.
    """
    found = first_class(LLAMA, layout_of(fsdp=64, grouping="torchtitan"), sequence_length=8192)
    assert found.memory.peak_bytes == 59_359_980_180 + 436_224_000
    assert found.memory.peak_phase == "head and loss"


# tp, layers, tokens -> parameters, held by a layer, gathered, the loss's all-reduces, FLOPs. Llama-3-8B.
#
# By hand, tp 2: of a layer's 218,112,000 parameters 8,192 are norms, which each rank has: 3 x (109,051,904 + 8,192) +
# 2 x 525,336,576 / 2 + 4,096 = 852,520,960. A residual stream is 2,048 x 4,096 x 2 = 16,777,216 bytes; 2 blocks of each
# of 3 layers, and the head, gather 7 of them: 117,440,512. The loss all-reduces 3 x 4 x 2,048 bytes.
TENSOR_PARALLEL = {
    (2, 3, 2048): (852_520_960, 188_882_968, 117_440_512, 24_576, 7_608_534_564_864),
    (8, 3, 2048): (213_151_744, 72_386_584, 117_440_512, 24_576, 1_902_133_641_216),
    (8, 32, 8192): (1_004_015_616, 289_546_264, 4_362_076_160, 98_304, 61_501_784_195_072),
}


@pytest.mark.parametrize(("tp", "layers", "tokens"), TENSOR_PARALLEL)
def test_tensor_parallel(tp: int, layers: int, tokens: int) -> None:
    spec = shortened(LLAMA, layers)
    found = first_class(spec, layout_of(tp=tp), sequence_length=tokens)
    profile = ranks_by_formula(spec, setup_of(spec, sequence_length=tokens), layout_of(tp=tp))
    parameters, held, gathered, loss, flops = TENSOR_PARALLEL[tp, layers, tokens]
    assert found.parameters == parameters
    assert {layer.held for layer in profile.layers} == {held}
    for phase in ("forward", "backward"):
        assert called(found, phase, "all_gather", "tp").bytes_out == gathered
        assert called(found, phase, "reduce_scatter", "tp").bytes_in == gathered
    assert called(found, "forward", "all_reduce", "tp").bytes_in == loss
    assert found.hardware_flops == flops


def one_moe_layer(spec: ModelSpec) -> ModelSpec:
    return structs.replace(spec, layer_runs=runs_of(spec.layers[3:4]))


# ep -> parameters of the layer on a rank. DeepSeek-V3's mixture-of-experts layer has 256 experts of 3 x 7,168 x 2,048 =
# 44,040,192 parameters: a rank of ep has 256 / ep of them. Both exchange 4,096 x 8 rows of 7,168 numbers in 16 bits,
# 469,762,048 bytes, there and back, and 8 bytes for each expert before.
EXPERT_PARALLEL = {8: 1_642_283_008, 64: 409_157_632}


@pytest.mark.parametrize("ep", EXPERT_PARALLEL)
def test_expert_parallel(ep: int) -> None:
    spec = one_moe_layer(DEEPSEEK)
    shapes = layer_shapes(spec.layers[0], ep)
    assert sum(map(numbers, (*shapes.layer, *shapes.experts))) == EXPERT_PARALLEL[ep]
    found = first_class(spec, layout_of(fsdp=ep, ep=ep), sequence_length=4096)
    forward, backward = (called(found, phase, "all_to_all", "ep") for phase in ("forward", "backward"))
    assert (forward.count, forward.bytes_in, forward.bytes_out) == (3, 939_526_144, 939_526_144)
    assert (backward.count, backward.bytes_in, backward.bytes_out) == (2, 939_524_096, 939_524_096)
    experts = found.forward_flops_by_component["routed_experts"]
    assert 3 * experts == 8_658_654_068_736


def test_all_layers_with_experts_divided() -> None:
    """DeepSeek-V3 on 2,048 ranks, ep 64, 4,096 tokens.

    The prototype's 179,287,888,500 bytes left out the correction biases of the routers, which are buffers: 58 layers x
    256 experts x 4 bytes = 59,392.
    """
    found = first_class(DEEPSEEK, layout_of(fsdp=2048, ep=64), sequence_length=4096)
    assert found.memory.buffers == 59_392
    assert found.memory.peak_bytes == 179_287_888_500 + 59_392
