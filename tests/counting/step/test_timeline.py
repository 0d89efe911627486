"""The memory of a step over time: of the whole model run whole, its peak the step's, and a course by hand."""

from itertools import pairwise
from typing import Any

import msgspec
import pytest
import torch

from counting import Layout, Setup, analyze
from counting.measurements.live_bytes import LiveBytes
from counting.measurements.meta_device import measuring
from counting.measurements.step import measure_courses
from counting.reconcile import DisagreementError
from counting.step import timeline as timelines
from counting.step.course import Change, Instant, OfKind, course_of, thinned
from counting.step.phase import PARTS
from counting.step.profile import Stretch
from counting.step.timeline import StepTimeline
from tests.shrunken import FAMILIES
from torch_models import ArgumentError, build_training_model
from torch_models.fields.config import spec_from_fields
from torch_models.spec import ModelSpec, runs_of

STEPS: list[dict[str, Any]] = [
    {},
    {"micro_batches": 3, "recompute": "full"},
    {"micro_batches": 2, "precision": "bf16", "zero_gradients": "in_place", "clip_gradients": True},
    {"micro_batches": 2, "precision": "mixed-fp32-gradients", "recompute": "selective"},
    {"loss_chunk": 16, "recompute": "per_op", "micro_batch_size": 2},
]


def small(family: str = "llama", layers: int = 3) -> ModelSpec:
    return spec_from_fields(FAMILIES[family] | {"num_hidden_layers": layers}, "shrunken")


def timeline_of(spec: ModelSpec, **settings: Any) -> StepTimeline:
    found = analyze(spec, Setup(sequence_length=32, **settings), timeline=True).timeline
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("family", "settings"), [*(("llama", step) for step in STEPS), ("deepseek_v3", STEPS[1])], ids=str
)
def test_peak_is_that_of_the_step_to_the_byte(family: str, settings: dict[str, Any]) -> None:
    """And at the worst moment of each phase the parts are those of the phase."""
    analysis = analyze(small(family), Setup(sequence_length=32, **settings), timeline=True)
    timeline, memory = analysis.timeline, analysis.memory
    assert timeline is not None
    assert memory is not None
    assert timeline.peak_bytes == memory.peak_bytes
    after = {phase.name for phase in timeline.after_backward}
    moments = set(zip(*(timeline.parts[part] for part in PARTS), strict=True))
    for phase in memory.phases:
        assert phase.name in after or tuple(getattr(phase, part) for part in PARTS) in moments, phase.name


@pytest.mark.parametrize("settings", STEPS[1:3], ids=str)
def test_one_layer_of_each_kind_stands_for_all(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The timeline of a model is that of one of the same sizes whose layers all differ, so that each of them runs."""
    monkeypatch.setattr(timelines, "MOST_MOMENTS", 10**6)
    spec = small("deepseek_v3", layers=5)
    layers = [
        msgspec.structs.replace(layer, norm_eps=layer.norm_eps * (1 + index / 1000))
        for index, layer in enumerate(spec.layers)
    ]
    whole = timeline_of(msgspec.structs.replace(spec, layer_runs=runs_of(layers)), **settings)
    found = timeline_of(spec, **settings)
    assert found.all_moments
    assert found == whole


def test_totals_are_those_of_a_step_that_is_only_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The live bytes after each op of a plain step, without cuts, hooks or layers left out, in this order."""
    monkeypatch.setattr(timelines, "MOST_MOMENTS", 10**6)
    spec = small(layers=2)
    timeline = timeline_of(spec, precision="bf16")
    watched: list[int] = []
    with measuring():
        model = build_training_model(spec, device="meta", dtype=torch.bfloat16)
        ids, labels = (torch.empty(1, 32, dtype=torch.long, device="meta") for _ in range(2))
        tables = model.model.rotary_tables(ids)
        inputs = [ids, labels, *(table for pair in tables for table in pair)]
        tracker = LiveBytes([*model.parameters(), *model.buffers(), *inputs], lambda *op: watched.append(tracker.live))
        with tracker:
            model(ids, labels, tables=tables).backward()
    states = timeline.parts["optimizer_state"][0]
    totals = iter(total - states for total in timeline.totals)
    watched = [live for before, live in pairwise(watched) if live != before]
    assert len(watched) > 100
    assert all(live in totals for live in watched), "each after the one before"


def test_another_peak_than_the_phases_have_is_a_disagreement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepTimeline, "peak_bytes", property(lambda timeline: 1))
    with pytest.raises(
        DisagreementError, match=r"^shrunken: step_bytes, step, peak: .* differs from step over time 1, "
    ):
        timeline_of(small())


def test_later_micro_batches_repeat_the_second() -> None:
    two, many = timeline_of(small(), micro_batches=2), timeline_of(small(), micro_batches=7)
    assert (two.micro_batches, two.micro_batches_shown, many.micro_batches, many.micro_batches_shown) == (2, 2, 7, 2)
    assert two.parts == many.parts


def test_phases_are_joined_and_cover_the_passes() -> None:
    timeline = timeline_of(small("deepseek_v3"), mtp=True, micro_batches=2)
    names = ["forward", "head, loss and MTP", "backward"]
    assert [(span.name, span.micro_batch) for span in timeline.spans] == [(name, mb) for mb in (0, 1) for name in names]
    ends = [0, *(span.last for span in timeline.spans)]
    assert [span.first for span in timeline.spans] == ends[:-1]
    assert timeline.changes[-1] == ends[-1]


def test_course_by_hand() -> None:
    """10 + 20 bytes before; a gradient of 5 comes, storage 1 goes, storage 3 of 8 comes and goes."""
    changes = [Change(2, 5), Change(0, 0), Change(3, 8), Change(3, 0)]
    course = course_of({0: 10, 1: 20}, changes, OfKind(gradients={2}))
    assert [instant.so_far.peak for instant in course] == [0, 5, -5, 3, -5]
    assert [instant.so_far.peak_gradients for instant in course] == [0, 5, 5, 5, 5]
    assert [instant.so_far.peak_released for instant in course] == [0, 0, 10, 10, 10]


def test_resized_storages_are_released_in_part() -> None:
    """A gathered parameter of 7 bytes is freed by resizing it to 0, a storage of 10 shrinks to 4 and grows to 6."""
    changes = [Change(1, 0), Change(0, 4), Change(0, 6)]
    course = course_of({0: 10, 1: 7}, changes, OfKind(gradients=(), gathered={1}))
    assert [instant.so_far.peak_gathered for instant in course] == [0, -7, -7, -7]
    assert [instant.so_far.peak_released for instant in course] == [0, 0, 6, 4]


def test_courses_have_the_peaks_of_the_stretches() -> None:
    spec, setup = small("deepseek_v3"), Setup(sequence_length=32, micro_batches=2, mtp=True)
    analysis = analyze(spec, setup)
    (courses, later) = measure_courses(spec, analysis.setup).micro_batches
    assert len(courses) == len(later) == 2 * len(spec.layer_groups()) + 3
    assert all(course[0].so_far.peak == 0 for course in courses)


@pytest.mark.parametrize(
    ("most", "kept"), [(1, [2, 5]), (2, [2, 4, 5]), (5, [0, 1, 2, 3, 4, 5]), (9, [0, 1, 2, 3, 4, 5])]
)
def test_thinned_keeps_the_worst_of_each_part_and_the_end(most: int, kept: list[int]) -> None:
    course = [Instant(at, Stretch(peak=peak, net=peak)) for at, peak in enumerate([0, 3, 9, 1, 4, 2])]
    assert [instant.changes for instant in thinned(course, most)] == kept


def test_a_timeline_is_of_a_step_on_one_device() -> None:
    with pytest.raises(ArgumentError, match="step = false: must be true with a timeline"):
        analyze(small(), Setup(sequence_length=32), step=False, timeline=True)
    with pytest.raises(ArgumentError, match="timeline = true: is of a step on one device: leave it out"):
        analyze(small(), Setup(sequence_length=32), layout=Layout(fsdp=2), timeline=True)
