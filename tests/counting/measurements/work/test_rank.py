"""The work of a rank: FLOPs and traffic against its profile, under every layout without a pipeline."""

from typing import Any

import pytest

from counting.measurements.ranks import measure_work
from counting.measurements.ranks.process import measure_model
from counting.ranks.profile import Traffic, total_traffic
from counting.ranks.result import step_traffic
from counting.ranks.shallow import shallow
from tests.counting.measurements.rank_runs import layout_of, resolved
from tests.counting.measurements.work_runs import bytes_of, step_flops, step_traffic_of
from tests.shrunken import DEEPSEEK_V3, GEMMA2, GPT_OSS, LLAMA
from torch_models.fields.config import spec_from_fields
from torch_models.recomputed_layers import with_recompute
from torch_models.spec import ModelSpec


def model_of(fields: dict[str, Any]) -> ModelSpec:
    return spec_from_fields(fields, fields["model_type"])


@pytest.mark.parametrize(
    ("fields", "axes", "settings"),
    [
        (LLAMA, {"fsdp": 4}, {"recompute": "full"}),
        (LLAMA, {"fsdp": 4, "zero": 1}, {"micro_batches": 5}),
        (LLAMA, {"fsdp": 2, "dp": 2, "zero": 2, "grouping": "torchtitan"}, {"micro_batches": 2}),
        (LLAMA, {"dp": 4}, {"precision": "mixed-fp32-gradients"}),
        (LLAMA, {"tp": 4}, {"loss_chunk": 7}),
        (LLAMA, {"tp": 2, "sequence_parallel": False, "fsdp": 2}, {"recompute": "selective", "clip_gradients": True}),
        (LLAMA, {"cp": 2, "fsdp": 2}, {"micro_batches": 3}),
        (GEMMA2, {"fsdp": 4}, {}),
        (GPT_OSS, {"fsdp": 4, "ep": 2}, {"clip_gradients": True}),
        (DEEPSEEK_V3 | {"num_nextn_predict_layers": 1}, {"fsdp": 4, "ep": 4}, {"mtp": True, "recompute": "per_op"}),
    ],
)
def test_flops_and_traffic_are_those_of_the_profile(
    fields: dict[str, Any], axes: dict[str, Any], settings: dict[str, Any]
) -> None:
    layout = layout_of(**axes)
    spec = model_of(fields)
    setup = resolved(spec, **{"sequence_length": 32, **settings})
    spec = with_recompute(spec, setup.recompute)
    work = measure_work(spec, setup, layout)
    profile = measure_model(shallow(spec), setup, layout)
    assert setup.micro_batches is not None
    assert step_flops(work) == profile.flops.hardware
    of_update = total_traffic([(step_traffic_of(work), 1), (work.ranks[0].optimizer.traffic, 1)])
    assert of_update == step_traffic(shallow(spec), profile, setup.micro_batches)


def test_gradients_are_reduced_in_the_last_micro_batch() -> None:
    """With zero=1; the passes between stand for all but the first and the last."""
    spec = model_of(LLAMA)
    work = measure_work(spec, resolved(spec, sequence_length=32, micro_batches=7), layout_of(fsdp=4, zero=1))
    (rank,) = work.ranks
    (stage,) = rank.stages
    assert [each.key for each in rank.order][1::2] == ["backward first", "backward middle", "backward last"]
    assert [each.micro_batch for each in rank.order] == [0, 0, 1, 1, 2, 2]
    reduces = {key: "backward reduce_scatter fsdp" in one.layers[0].traffic for key, one in stage.passes.items()}
    assert [key for key in reduces if reduces[key]] == ["backward last"]


def test_update_of_the_first_shard() -> None:
    """4 ranks divide 64, 96 and 112 rows evenly: a rank updates a quarter of the model in FP32, with torch's counters.

    Of each number weight, gradient and two moments are read, and all but the gradient written. 30 tensors.
    """
    spec = model_of(LLAMA)
    work = measure_work(spec, resolved(spec, sequence_length=32), layout_of(fsdp=4))
    numbers = (3 * (4 * 64 * 64 + 3 * 64 * 112 + 2 * 64) + 2 * 96 * 64 + 64) // 4
    calls = bytes_of(work.ranks[0].optimizer.ops)
    assert sum(read for name, read, _ in calls if name == "_fused_adamw_") == 16 * numbers + 4 * 30
    assert sum(written for name, _, written in calls if name == "_fused_adamw_") == 12 * numbers
    assert {name for name, _, _ in calls} == {"_foreach_add_", "_fused_adamw_"}


def test_clipping_of_a_rank() -> None:
    """Of 30 tensors on 4 ranks: gradients are read for their norms and again, with a factor, to be scaled.

    Norms are stacked, squared, summed over the ranks and their roots taken, 4 x 30 bytes each time; then a norm of all.
    To it 1e-6 is added; max_norm over that, at most 1, is the factor.
    """
    spec = model_of(LLAMA)
    layout = layout_of(fsdp=4)
    plain, clipped = (
        measure_work(spec, resolved(spec, sequence_length=32, clip_gradients=clips), layout).ranks[0].optimizer
        for clips in (False, True)
    )
    gradients, norms = 4 * (3 * (4 * 64 * 64 + 3 * 64 * 112 + 2 * 64) + 2 * 96 * 64 + 64) // 4, 4 * 30
    clipping = clipped.ops[: len(clipped.ops) - len(plain.ops)]
    assert clipped.ops[len(clipping) :] == plain.ops
    assert [(op.name, op.calls, op.bytes_read, op.bytes_written) for op in clipping] == [
        ("_foreach_norm", 1, gradients, norms),
        ("stack", 1, norms, norms),
        ("pow", 2, norms, norms),
        ("linalg_vector_norm", 1, norms, 4),
        ("add", 1, 4, 4),
        ("reciprocal", 1, 4, 4),
        ("mul", 1, 4, 4),
        ("clamp", 1, 4, 4),
        ("_foreach_mul_", 1, gradients + 4, gradients),
    ]
    assert clipped.traffic == {"optimizer all_reduce fsdp": Traffic(calls=1, bytes_in=norms, bytes_out=norms)}
    assert not plain.traffic


@pytest.mark.parametrize(("axes", "sums"), [({"tp": 2}, True), ({"tp": 2, "fsdp": 2}, False)])
def test_gradients_are_added_to_buffers_where_nothing_reduces_them(axes: dict[str, Any], sums: bool) -> None:
    """In FP32, of gradients in 16 bits: 2 bytes and 4 are read a number, 4 written; then zeros are written.

    Each of three matrices of SwiGLU has half of 112 x 64 numbers. fully_shard reduces in FP32 instead.
    """
    spec = model_of(LLAMA)
    setup = resolved(spec, sequence_length=32, precision="mixed-fp32-gradients")
    (rank,) = measure_work(spec, setup, layout_of(**axes)).ranks
    added = [
        op
        for op in rank.stages[0].passes["backward first"].layers[0].ops
        if op.name == "add_" and (op.bytes_read, op.bytes_written) == (6 * 56 * 64, 4 * 56 * 64)
    ]
    assert sum(op.calls for op in added) == (3 if sums else 0)
    assert any("zero" in op.name for op in rank.optimizer.ops) is sums


def test_a_rank_of_tensor_parallelism_reads_its_part() -> None:
    """With tp=4 and sequence parallelism norms read a quarter of the positions, and SwiGLU a quarter of its width."""
    spec = model_of(LLAMA)
    setup = resolved(spec, sequence_length=32)
    whole, part = (
        {op.name: op for op in work.ranks[0].stages[0].passes["forward first"].layers[0].ops if op.kind == "memory"}
        for work in (measure_work(spec, setup, layout_of(fsdp=4)), measure_work(spec, setup, layout_of(tp=4)))
    )
    weight = 2 * 64
    assert part["silu"].bytes_read * 4 == whole["silu"].bytes_read == 32 * 112 * 2
    assert (part["_fused_rms_norm"].bytes_read - weight) * 4 == whole["_fused_rms_norm"].bytes_read - weight
