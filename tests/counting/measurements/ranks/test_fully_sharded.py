"""Fully sharded data parallelism, measured: goldens of a prototype that did not share code with this project.

All with one micro-batch of one sequence, fused kernels, precision "mixed" and AdamW.
"""

import pytest

from counting.ranks.profile import Traffic
from tests.counting.measurements.rank_runs import layout_of, run_layout, shortened
from torch_models.fields.config import read_spec

LLAMA = read_spec("llama_3_8b")

# Ranks -> parameters in fp32, moments with step counters, gathered in forward and in backward (bytes written),
# reduced (bytes read), gradients, peak; two layers of Llama-3-8B, 2,048 tokens.
GOLDEN = {
    8: (743_450_624, 1_486_901_332, 2_973_802_496, 872_448_000, 5_947_604_992, 743_450_624, 8_753_084_508),
    64: (92_931_328, 185_862_740, 2_973_802_496, 872_448_000, 5_947_604_992, 92_931_328, 6_690_934_668),
    100: (59_589_428, 119_178_940, 2_979_471_400, 877_396_000, 5_958_942_800, 59_589_428, 6_594_103_872),
    4096: (1_556_500, 3_113_084, 3_187_712_000, 1_040_220_160, 6_375_424_000, 1_556_500, 6_546_833_608),
}


@pytest.mark.parametrize("ranks", GOLDEN)
def test_two_layers(ranks: int) -> None:
    _, memory, traffics = run_layout(shortened(LLAMA, 2), layout_of(fsdp=ranks), sequence_length=2048)
    states = memory.states
    found = (
        states.weights,
        states.moments,
        traffics["forward all_gather fsdp"].bytes_out,
        traffics["backward all_gather fsdp"].bytes_out,
        traffics["backward reduce_scatter fsdp"].bytes_in,
        states.gradients,
        memory.peak_bytes,
    )
    assert found == GOLDEN[ranks]
    assert states.masters == 0
    assert set(traffics) == {
        "forward all_gather fsdp",
        "backward all_gather fsdp",
        "backward reduce_scatter fsdp",
    }


def test_replicas() -> None:
    """8 replicas of 8 shards: as 8 shards, and each gradient is reduced over the replicas, in place."""
    profile, memory, traffics = run_layout(shortened(LLAMA, 2), layout_of(dp=8, fsdp=8), sequence_length=2048)
    _, alone, without = run_layout(shortened(LLAMA, 2), layout_of(fsdp=8), sequence_length=2048)
    assert traffics.pop("backward all_reduce dp") == Traffic(calls=3, bytes_in=743_450_624, bytes_out=743_450_624)
    assert traffics == without
    assert memory == alone
    assert memory.peak_bytes == 8_753_084_508
    assert [share.count for share in profile.shares] == [64]


def test_all_layers() -> None:
    _, memory, traffics = run_layout(LLAMA, layout_of(fsdp=64), sequence_length=8192)
    assert memory.states.weights == 501_891_328
    assert memory.states.moments == 1_003_783_820
    assert memory.states.gradients == 501_891_328
    assert traffics["forward all_gather fsdp"].bytes_out == 16_060_522_496
    assert traffics["backward all_gather fsdp"].bytes_out == 13_959_168_000
    assert traffics["backward reduce_scatter fsdp"].bytes_in == 32_121_044_992
    assert memory.peak_bytes == 60_846_877_332


def test_all_layers_in_the_grouping_of_torchtitan() -> None:
    """The prototype has 59,359,980,180 bytes, without the last layer's gathered bytes.

    There the head returns logits, and `fully_shard` begins to gather the last layer when their gradient is complete.
    Here head and loss are one module, so it begins before the loss's backward pass. The peak, in that pass, has one
    more tensor: the flat buffer of that all-gather, 218,112,000 numbers in bfloat16.
    """
    _, memory, _ = run_layout(LLAMA, layout_of(fsdp=64, grouping="torchtitan"), sequence_length=8192)
    worst = next(phase for phase in memory.phases if phase.name == memory.peak_phase)
    assert worst.name == "head and loss"
    assert worst.communication_buffers == 2 * 218_112_000
    assert memory.peak_bytes == 59_359_980_180 + 2 * 218_112_000
