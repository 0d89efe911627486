"""Tensor and expert parallelism, measured: goldens of a prototype that did not share code with this project."""

from typing import Any

import msgspec
import pytest

from counting.ranks.profile import Traffic
from tests.counting.measurements.rank_runs import RankRun, layout_of, run_layout, shortened
from torch_models.fields.config import read_spec

LLAMA, DEEPSEEK = read_spec("llama_3_8b"), read_spec("deepseek_v3")

# Ranks, layers, tokens -> parameters of a rank, bytes that a layer keeps for backward, bytes gathered and reduced in
# forward, as in backward; of the loss's three sums; FLOPs of forward and backward.
TENSOR_PARALLEL = {
    (2, 3, 2048): (852_520_960, 188_882_968, 117_440_512, 24_576, 7_608_534_564_864),
    (8, 3, 2048): (213_151_744, 72_386_584, 117_440_512, 24_576, 1_902_133_641_216),
    (8, 32, 8192): (1_004_015_616, 289_546_264, 4_362_076_160, 98_304, 61_501_784_195_072),
}


@pytest.mark.parametrize("case", TENSOR_PARALLEL)
def test_tensor_parallel(case: tuple[int, int, int]) -> None:
    ranks, layers, length = case
    parameters, kept, moved, loss, flops = TENSOR_PARALLEL[case]
    profile, _, traffics = run_layout(shortened(LLAMA, layers), layout_of(tp=ranks), sequence_length=length)
    assert [share.parameters for share in profile.shares] == [parameters]
    assert {layer.held for layer in profile.layers} == {kept}
    assert profile.flops.hardware == flops
    for phase in ("forward", "backward"):
        assert traffics[f"{phase} all_gather tp"].bytes_out == moved
        assert traffics[f"{phase} reduce_scatter tp"].bytes_in == moved
    assert traffics["forward all_reduce tp"] == Traffic(calls=3, bytes_in=loss, bytes_out=loss)
    # The gradients of the norms, in bfloat16: two of each layer, and the last one.
    norms = 2 * layers + 1
    assert traffics["backward all_reduce tp"] == Traffic(
        calls=norms, bytes_in=norms * 2 * 4096, bytes_out=norms * 2 * 4096
    )


def deepseek(run: dict[str, Any] | None = None, **axes: Any) -> RankRun:
    return run_layout(DEEPSEEK, layout_of(**axes), sequence_length=4096, **(run or {}))


@pytest.mark.parametrize(("ep", "of_layer"), [(8, 1_642_283_008), (64, 409_157_632)])
def test_expert_parallel(ep: int, of_layer: int) -> None:
    """Replicas that divide nothing but the experts."""
    profile, _, traffics = deepseek(dp=ep, fsdp=1, ep=ep)
    assert {layer.parameters for layer in profile.layers if layer.kind == "moe"} == {of_layer}
    assert traffics["forward all_to_all ep"].bytes_in == 58 * 939_526_144
    assert traffics["backward all_to_all ep"].bytes_in == 58 * 939_524_096
    routed = profile.flops.forward.routed_experts + profile.flops.backward.routed_experts
    assert routed == 58 * 8_658_654_068_736


def test_expert_parallel_on_2048_ranks() -> None:
    """The prototype's 179,287,888,500 bytes are without the routers' correction biases: 58 times 256 in fp32."""
    profile, memory, _ = deepseek(fsdp=2048, ep=64)
    assert profile.buffers == 58 * 256 * 4
    assert memory.peak_bytes == 179_287_888_500 + profile.buffers
    assert sum(share.count for share in profile.shares) == 2048


def test_busiest_rank() -> None:
    """It sends as many rows as the others, and receives half as many again."""
    _, memory, traffics = deepseek(fsdp=64, ep=64)
    layout = msgspec.structs.replace(layout_of(fsdp=64, ep=64), expert_imbalance=1.5)
    profile, busiest, of_busiest = run_layout(DEEPSEEK, layout, sequence_length=4096)
    rows = 58 * 8 * 4096 * 7168 * 2  # T K rows of D numbers in bfloat16, in each layer
    forward, of_balanced = of_busiest["forward all_to_all ep"], traffics["forward all_to_all ep"]
    assert forward.bytes_in - of_balanced.bytes_in == rows // 2  # on the way back
    assert forward.bytes_out - of_balanced.bytes_out == rows // 2  # on the way there
    assert busiest.peak_bytes > memory.peak_bytes
    routed = profile.flops.forward.routed_experts
    assert routed * 2 == 3 * deepseek(fsdp=64, ep=64).profile.flops.forward.routed_experts
