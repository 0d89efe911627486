"""The work of a pipeline's ranks: its sum over the whole step is exactly what is measured of the step."""

from collections.abc import Iterator
from typing import Any

import pytest

from counting.measurements.ranks import measure_pipeline, measure_work
from counting.ranks.pipeline import PipelineProfile
from counting.ranks.pipeline_memory import pipeline_traffic
from counting.ranks.profile import Traffic, Traffics, total_traffic
from counting.setup import Setup
from counting.work import RankWork, StageWork, StepWork, StretchWork
from tests.counting.measurements.rank_runs import layout_of, resolved
from tests.shrunken import FAMILIES
from torch_models.fields.config import spec_from_fields
from torch_models.recomputed_layers import with_recompute
from torch_models.stages import Stage, stages_of

SMALL: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llama", {"pp": 2}, {"precision": "mixed-fp32-gradients"}),
    ("llama", {"pp": 2, "fsdp": 2, "tp": 2}, {}),
    ("mixtral", {"pp": 2, "fsdp": 2, "ep": 2, "schedule": "zbv"}, {"clip_gradients": True}),
]
MATRIX: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llama", {"pp": 2, "fsdp": 2, "schedule": "zb"}, {}),
    ("llama", {"pp": 2, "dp": 2, "cp": 2, "schedule": "interleaved"}, {"recompute": "selective"}),
    ("deepseek_v3", {"pp": 2, "fsdp": 2, "ep": 2, "schedule": "dualpipev"}, {"recompute": "full", "mtp": True}),
    ("deepseek_v3", {"pp": 2}, {"mtp": True, "clip_gradients": True}),
]
MICRO_BATCHES = 4


def measured(
    family: str, axes: dict[str, Any], run: dict[str, Any]
) -> tuple[StepWork, tuple[PipelineProfile, ...], tuple[Stage, ...], Setup]:
    layout = layout_of(**{"grouping": "torchtitan", **axes})
    spec = spec_from_fields(FAMILIES[family] | {"num_hidden_layers": 9}, family)
    setup = resolved(spec, sequence_length=32, micro_batches=MICRO_BATCHES, **run)
    spec = with_recompute(spec, setup.recompute)
    return measure_work(spec, setup, layout), measure_pipeline(spec, setup, layout), stages_of(spec, layout), setup


def stretches_of(stage: StageWork, key: str) -> Iterator[tuple[StretchWork, int]]:
    """The stretches of a pass, each with how often the whole stage has it."""
    work = stage.passes[key]
    yield work.before, 1
    yield work.after, 1
    yield from ((work.layers[index], count) for index, count in stage.runs)


def step_of(rank: RankWork) -> Iterator[tuple[StretchWork, int]]:
    """All stretches of a step of one rank."""
    stages = {stage.stage: stage for stage in rank.stages}
    for one in rank.order:
        yield from stretches_of(stages[one.stage], one.key)


def messages_of_step(rank: RankWork, of_all: dict[int, StageWork]) -> Traffics:
    """What the stages of a rank send and receive in all passes of its order."""
    found: list[tuple[Traffics, int]] = []
    for one in rank.order:
        if one.kind in ("forward", "backward", "input_backward"):
            phase, index = ("forward", 0) if one.kind == "forward" else ("backward", 1)
            sender = of_all.get(one.stage + (1 if index else -1))
            sent = of_all[one.stage].message_bytes[index]
            received = sender.message_bytes[index] if sender else 0
            if sent:
                found.append(({f"{phase} send pp": Traffic(calls=1, bytes_in=sent)}, 1))
            if received:
                found.append(({f"{phase} receive pp": Traffic(calls=1, bytes_out=received)}, 1))
    return total_traffic(found)


def compare(family: str, axes: dict[str, Any], run: dict[str, Any]) -> None:
    """FLOPs of all ops of all passes, and the traffic of passes and messages, are those of the profile."""
    work, profiles, stages, setup = measured(family, axes, run)
    of_all = {stage.stage: stage for rank in work.ranks for stage in rank.stages}
    assert work.micro_batches == MICRO_BATCHES
    for rank, profile in zip(work.ranks, profiles, strict=True):
        assert rank.pipeline_rank == profile.pipeline_rank
        assert flops_of(rank, compiled=False) == flops_of(rank, compiled=True) == profile.flops.hardware
        of_passes = [(stretch.traffic, times) for stretch, times in step_of(rank)]
        found = total_traffic([*of_passes, (messages_of_step(rank, of_all), 1), (rank.optimizer.traffic, 1)])
        assert bool(rank.optimizer.traffic) is setup.clip_gradients
        assert found == pipeline_traffic(stages, setup, profile)
        assert rank.optimizer.ops


def flops_of(rank: RankWork, *, compiled: bool) -> int:
    """The FLOPs of a step of one rank."""
    return sum(
        op.calls * op.flops * times
        for stretch, times in step_of(rank)
        for op in ((compiled and stretch.fused_ops) or stretch.ops)
    )


@pytest.mark.parametrize(("family", "axes", "run"), SMALL)
def test_sums_over_the_step_are_what_is_measured(family: str, axes: dict[str, Any], run: dict[str, Any]) -> None:
    compare(family, axes, run)


@pytest.mark.sweep
@pytest.mark.parametrize(("family", "axes", "run"), MATRIX)
def test_sums_over_the_step_everywhere(family: str, axes: dict[str, Any], run: dict[str, Any]) -> None:
    compare(family, axes, run)


def test_golden_messages_of_a_v() -> None:
    """A message has 32 positions x 64 numbers of 2 bytes; nothing is sent where the V turns, and at its ends.

    Of 4 stages the first rank has 0 and 3, the second 1 and 2.
    """
    work, *_ = measured(*SMALL[2])
    message = 32 * 64 * 2
    found = {stage.stage: stage.message_bytes for rank in work.ranks for stage in rank.stages}
    assert found == {0: (message, 0), 1: (0, message), 2: (message, 0), 3: (0, message)}
