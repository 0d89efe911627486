"""Ranks that divide the positions: what each of them holds, sends and computes; and the same in gloo processes.

Torch's ring attention has no kernels for the CPU; those of `ring_kernels` stand for them, with results of equal sizes.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from counting.measurements.ranks import measure_ranks
from counting.measurements.ranks.context import distinct_context_ranks
from counting.measurements.ranks.process import measure_model
from counting.measurements.ranks.stand_ins import replaced
from counting.ranks.memory import rank_memory
from counting.ranks.profile import RankProfile, Traffic
from counting.ranks.shallow import Shallow, shallow
from counting.setup import Setup
from tests.counting.measurements.rank_runs import layout_of, resolved, run_layout, shortened, whole
from tests.counting.measurements.ranks.real_ranks import balanced_routing, differences, profile_of_real_rank
from tests.shrunken import FAMILIES
from tests.torch_models.parallel.ring_kernels import kernels_on_the_cpu
from tests.worlds import World
from torch_models.fields.config import read_spec, spec_from_fields
from torch_models.layout import Layout
from torch_models.modules.layers import RMSNorm
from torch_models.parallel import apply

LLAMA = read_spec("llama_3_8b")


@pytest.mark.parametrize("rank", [0, 3])
def test_two_layers(rank: int) -> None:
    """Goldens of a prototype: two layers of Llama-3-8B in bf16, 8,192 tokens over 4 ranks.

    A layer's keys and values of all ranks are 2 x 8,192 x 1,024 numbers; forward and backward gather them in bf16, and
    their gradients go round the 4 ranks in fp32, a quarter at a time. Full attention of a rank is
    4 x 8,192 x 8,192 x 4,096 / 4 FLOPs a layer in the forward pass; with half of all keys or queries left out of the
    kernels for other ranks' blocks, (4 + 1) / (2 x 4) of it.
    """
    profile, _, traffics = run_layout(
        shortened(LLAMA, 2), layout_of(cp=4), rank, sequence_length=8192, precision="bf16"
    )
    gathered = 2 * 2 * 8192 * 1024 * 2
    assert gathered == 67_108_864
    once = Traffic(calls=2, bytes_in=gathered // 4, bytes_out=gathered)
    assert traffics["forward all_gather cp"] == traffics["backward all_gather cp"] == once
    assert 2 * gathered == 134_217_728
    assert traffics["backward all_to_all cp"] == Traffic(calls=2 * 4, bytes_in=2 * gathered, bytes_out=2 * gathered)
    full = 2 * 4 * 8192**2 * 4096 // 4
    projections = 2 * 2 * 2048 * 4096 * (2 * 4096 + 2 * 1024)
    assert profile.flops.forward.attention - projections == 343_597_383_680 == full * 5 // 8
    assert profile.flops.skipped_by_causality.by_component() == {
        **dict.fromkeys(profile.flops.forward.by_component(), 0),
        "attention": full * 3 // 8,
    }
    flops = profile.flops
    assert flops.hardware == flops.model + flops.recomputed.total + flops.extra_products - flops.skipped
    assert flops.extra_products == full // 2 * 5 // 8  # the scores, one of two products


def small(family: str) -> Shallow:
    return shallow(spec_from_fields(FAMILIES[family], family))


RUNS: list[dict[str, Any]] = [{}, {"recompute": "full"}, {"recompute": "selective", "micro_batches": 2}]


@pytest.mark.parametrize("run", RUNS, ids=str)
@pytest.mark.parametrize(("family", "length"), [("llama", 60), ("deepseek_v3", 320)])
def test_ranks_between_the_first_and_the_last_are_alike(family: str, length: int, run: dict[str, Any]) -> None:
    model, layout = small(family), layout_of(cp=5, grouping="torchtitan")
    setup = resolved(model.spec, sequence_length=length, **run)
    found = [measure_model(model, setup, layout, rank) for rank in range(5)]
    assert distinct_context_ranks(layout) == (0, 1, 4)
    assert [profile.context_rank for profile in found] == [0, 1, 2, 3, 4]
    between = [_of_a_step(profile) for profile in found[1:4]]
    assert between[0] == between[1] == between[2]
    assert len({msgspec.json.encode(profile.flops) for profile in found}) == 1
    peaks = [rank_memory(model, setup, profile, profile.shares[0], "").peak_bytes for profile in found]
    worst = measure_ranks(model.spec, setup, layout)
    assert worst.context_rank == peaks.index(max(peaks))
    assert rank_memory(model, setup, worst, worst.shares[0], "").peak_bytes == max(peaks)


def _of_a_step(profile: RankProfile) -> list[Any]:
    """What happens in a step, without what is stored, which depends on the shard."""
    held = [layer.held for layer in profile.layers]
    return [held, profile.first_micro_batch, profile.last_micro_batch, profile.inputs]


def test_the_first_and_the_last_rank_differ() -> None:
    """The first rank merges halves of its queries alone, which takes less memory.

    The last one keeps less: after a merge of halves the output is in the order of heads, and is copied for its
    projection.
    """
    model = small("llama")
    runs = [run_layout(model, layout_of(cp=4), rank, sequence_length=128).profile for rank in (0, 1, 3)]
    assert runs[0].first_micro_batch.forward[0].memory.peak < runs[1].first_micro_batch.forward[0].memory.peak
    held, heads_by_channels = [profile.layers[0].held for profile in runs], 64
    assert held[0] == held[1] == held[2] + 2 * (128 // 4) * heads_by_channels


@contextlib.contextmanager
def eager_norms() -> Iterator[None]:
    """Context in which norms are those of eager kernels: on the CPU torch's fused norm allocates other tensors."""
    plain = RMSNorm.__init__

    def init(norm: RMSNorm, width: int, eps: float, kernels: str, *, unit_offset: bool = False) -> None:
        del kernels
        plain(norm, width, eps, "eager", unit_offset=unit_offset)

    with replaced(RMSNorm, "__init__", init):
        yield


def profile_of_real_ring(model: Shallow, setup: Setup, layout: Layout) -> RankProfile:
    """What the calling rank of gloo holds and sends."""
    with eager_norms(), kernels_on_the_cpu(), replaced(apply, "check_device_of_ring", lambda mesh: None):
        return profile_of_real_rank(model, setup, layout)


SMALL = [
    ("llama", 2, 24, {"cp": 2}, {"micro_batches": 2}),
    ("deepseek_v3", 2, 128, {"cp": 2, "ep": 2}, {"mtp": True, "recompute": "full"}),
    ("qwen2", 4, 24, {"cp": 4}, {"recompute": "selective", "precision": "bf16"}),
]
MATRIX = [
    ("deepseek_v3", 4, 256, {"cp": 4}, {}),
    ("llama", 4, 24, {"cp": 2, "fsdp": 2}, {"loss_chunk": 8}),
    ("qwen3", 4, 24, {"cp": 2, "dp": 2}, {"recompute": "full"}),
    ("olmo2", 4, 24, {"cp": 2, "tp": 2}, {"micro_batches": 2}),
    ("deepseek_v3", 4, 128, {"cp": 2, "fsdp": 2, "ep": 4}, {"mtp": True, "micro_batches": 2}),
    ("mixtral", 4, 48, {"cp": 2, "fsdp": 2, "ep": 2}, {"recompute": "full", "micro_batch_size": 2}),
]


def compare(
    worlds: dict[int, World], family: str, ranks: int, length: int, axes: dict[str, Any], run: dict[str, Any]
) -> None:
    spec = spec_from_fields(FAMILIES[family], family)
    setup, layout = resolved(spec, sequence_length=length, **run), layout_of(**axes)
    real = worlds[ranks].run(profile_of_real_ring, whole(spec), setup, layout)
    for rank, profile in enumerate(real):
        with balanced_routing(), eager_norms():
            fake = measure_model(whole(spec), setup, layout, rank)
        assert differences(profile, fake) == []
        assert profile == fake


@pytest.mark.parametrize(("family", "ranks", "length", "axes", "run"), SMALL)
def test_real_equals_fake(
    worlds: dict[int, World], family: str, ranks: int, length: int, axes: dict[str, Any], run: dict[str, Any]
) -> None:
    compare(worlds, family, ranks, length, axes, run)


@pytest.mark.sweep
@pytest.mark.parametrize(("family", "ranks", "length", "axes", "run"), MATRIX)
def test_real_equals_fake_everywhere(
    worlds: dict[int, World], family: str, ranks: int, length: int, axes: dict[str, Any], run: dict[str, Any]
) -> None:
    compare(worlds, family, ranks, length, axes, run)
