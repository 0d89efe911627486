"""The work of a step on one device: FLOPs against the measured step, bytes worked out by hand."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from counting.measurements.model import measure
from counting.measurements.work.device import work_of_device
from counting.setup import Setup
from counting.work import Op, PassWork, StepWork
from tests.counting.measurements.rank_runs import resolved
from tests.counting.measurements.work_runs import bytes_of, step_flops
from tests.shrunken import DEEPSEEK_V3, GEMMA2, GPT_OSS, LLAMA, MIXTRAL
from torch_models.fields.config import spec_from_fields
from torch_models.recomputed_layers import with_recompute
from torch_models.spec import ModelSpec

LENGTH = 24


def model_of(fields: dict[str, Any]) -> ModelSpec:
    return spec_from_fields(fields, fields["model_type"])


def work_of(fields: dict[str, Any], **settings: Any) -> tuple[ModelSpec, Setup, StepWork]:
    spec = model_of(fields)
    setup = resolved(spec, **{"sequence_length": LENGTH, **settings})
    spec = with_recompute(spec, setup.recompute)
    return spec, setup, work_of_device(spec, setup)


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        (LLAMA, {"micro_batches": 5, "micro_batch_size": 2}),
        (LLAMA, {"recompute": "full", "kernels": "eager"}),
        (DEEPSEEK_V3 | {"num_nextn_predict_layers": 1}, {"mtp": True, "micro_batches": 2}),
        (DEEPSEEK_V3, {"recompute": 2}),
        (GPT_OSS, {"recompute": "selective", "loss_chunk": 7}),
        (GEMMA2, {"precision": "fp32", "micro_batches": 3}),
        (MIXTRAL, {"recompute": "per_op", "precision": "mixed-fp32-gradients"}),
    ],
)
def test_flops_are_those_of_the_measured_step(fields: dict[str, Any], settings: dict[str, Any]) -> None:
    spec, setup, work = work_of(fields, **settings)
    measured = measure(spec, setup, step=True)["dispatch"].training_flops
    assert measured is not None
    assert step_flops(work) == measured.hardware


def test_layers_and_micro_batches_of_the_whole_model() -> None:
    """One layer of each kind with its number, and three of five micro-batches, of which the later ones are equal."""
    _, _, work = work_of(DEEPSEEK_V3, micro_batches=5)
    (rank,) = work.ranks
    (stage,) = rank.stages
    assert stage.runs == ((0, 1), (1, 3))
    assert set(stage.passes) == {"forward first", "backward first", "forward later", "backward later"}
    assert [(each.kind, each.key, each.micro_batch) for each in rank.order] == [
        ("forward", "forward first", 0),
        ("backward", "backward first", 0),
        ("forward", "forward later", 1),
        ("backward", "backward later", 1),
        ("forward", "forward later", 2),
        ("backward", "backward later", 2),
    ]
    assert work.micro_batches == 5


# --- One layer of a llama by hand --------------------------------------------------------------------------------

T, D, F, C, H, G = LENGTH, 64, 112, 8, 8, 2
NUMBER, WIDE = 2, 4  # bytes in BF16 and FP32
QUERY, KEY, TABLE = T * H * C * NUMBER, T * G * C * NUMBER, T * C // 2 * NUMBER
STREAM, HIDDEN, WEIGHT, INVERSE_RMS = T * D * NUMBER, T * F * NUMBER, D * NUMBER, T * WIDE


def of_layer(kind: str) -> dict[str, tuple[int, int]]:
    """Bytes read and written by all memory ops of a name in the middle layer, in-place ones with the others."""
    _, _, work = work_of(LLAMA | {"num_key_value_heads": G})
    found: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    ops = [op for op in work.ranks[0].stages[0].passes[f"{kind} first"].layers[0].ops if op.kind == "memory"]
    for name, read, written in bytes_of(ops):
        before = found[name.removesuffix("_")]
        found[name.removesuffix("_")] = before[0] + read, before[1] + written
    return dict(found)


def test_bytes_of_a_layer_forward() -> None:
    """Rotary embedding halves queries and keys: four products with a table, a difference, a sum, and both joined."""
    rotated = QUERY + KEY
    assert of_layer("forward") == {
        "_fused_rms_norm": (2 * (STREAM + WEIGHT), 2 * (STREAM + INVERSE_RMS)),
        "mul": (2 * rotated + 8 * TABLE + 2 * HIDDEN, 2 * rotated + HIDDEN),
        "sub": (rotated, rotated // 2),
        "add": (rotated + 2 * 2 * STREAM, rotated // 2 + 2 * STREAM),
        "cat": (rotated, rotated),
        "silu": (HIDDEN, HIDDEN),
    }


def test_bytes_of_a_layer_backward() -> None:
    """Of each half of queries and keys: two products with a table, and the sum of both; a half is negated, all joined.

    Five more sums of gradients: of the two residual streams, of gate and up, and two of queries, keys and values.
    """
    rotated = QUERY + KEY
    assert of_layer("backward") == {
        "_fused_rms_norm_backward": (2 * (2 * STREAM + WEIGHT + INVERSE_RMS), 2 * (STREAM + WEIGHT)),
        "mul": (2 * rotated + 8 * TABLE + 2 * 2 * HIDDEN, 2 * rotated + 2 * HIDDEN),
        "neg": (rotated // 2, rotated // 2),
        "add": (2 * rotated + 5 * 2 * STREAM, rotated + 5 * STREAM),
        "cat": (rotated, rotated),
        "silu_backward": (2 * HIDDEN, HIDDEN),
    }


def test_recomputed_ops_run_in_backward() -> None:
    """With full recomputation a layer's backward pass has all ops of its forward pass besides its own."""
    _, _, plain = work_of(LLAMA)
    _, _, again = work_of(LLAMA, recompute="full")

    def calls(work: StepWork, kind: str) -> Counter[str]:
        found: Counter[str] = Counter()
        for op in work.ranks[0].stages[0].passes[f"{kind} first"].layers[0].ops:
            found[op.name] += op.calls
        return found

    assert calls(again, "backward") == calls(plain, "forward") + calls(plain, "backward")
    assert calls(again, "forward") == calls(plain, "forward")


# --- After the passes --------------------------------------------------------------------------------------------


def parameters_of(fields: dict[str, Any]) -> tuple[int, int]:
    """Numbers and tensors of the whole model."""
    spec = model_of(fields)
    counts = measure(spec, resolved(spec, sequence_length=LENGTH), step=False)["numel"].whole_model()
    assert counts.parameters is not None
    return counts.parameters.total, 3 * 9 + 3  # of three llama layers, embedding, norm and head


def update_of(**settings: Any) -> dict[str, tuple[int, int]]:
    _, _, work = work_of(LLAMA, **settings)
    found: dict[str, tuple[int, int]] = {}
    for name, read, written in bytes_of(work.ranks[0].optimizer.ops):
        before = found.get(name, (0, 0))
        found[name] = before[0] + read, before[1] + written
    return found


def test_fused_adamw_with_master_weights() -> None:
    """Per number: the gradient is converted (2 + 4 bytes), masters, gradients and moments are read, and masters and
    moments written (16 + 12), masters are copied to the weights (4 + 2). Each tensor has a counter in FP32."""
    numbers, tensors = parameters_of(LLAMA)
    counters = WIDE * tensors
    assert update_of(precision="mixed") == {
        "_to_copy": (2 * numbers, 4 * numbers),
        "_foreach_add_": (counters, counters),
        "_fused_adamw_": (16 * numbers + counters, 12 * numbers),
        "copy_": (4 * numbers, 2 * numbers),
    }


def test_clipping_and_zeroing() -> None:
    """Norms read all gradients, scaling reads and writes them, and so does filling them with zeros, but no reading.

    The norm of the norms and the factor are scalars.
    """
    numbers, tensors = parameters_of(LLAMA)
    found = update_of(precision="fp32", clip_gradients=True, zero_gradients="in_place")
    assert found["_foreach_norm"] == (4 * numbers, 4 * tensors)
    assert found["_foreach_mul_"] == (4 * numbers + 4, 4 * numbers)
    assert found["_foreach_zero_"] == (0, 4 * numbers)


def test_update_that_torch_does_not_run() -> None:
    """By the recipe's bytes. fp8: gradients in FP32 and masters are read, moments in BF16 read and written.

    Linear weights are written in a byte, others in two; the gradients' buffers are filled with zeros.

    8-bit moments of tensors below 4,096 numbers are in FP32: of all but the gate, up and down projections (64 x 112)
    and those of attention (64 x 64) and the vocabulary's (96 x 64): these have 2 bytes a number, and 2 scales of 4 for
    each 256 numbers.
    """
    numbers, _ = parameters_of(LLAMA)
    linear = 3 * (4 * 64 * 64 + 3 * 64 * 112)
    weights = linear + 2 * (numbers - linear)
    assert update_of(precision="fp8") == {
        "adamw": ((4 + 4 + 2 * 2) * numbers, (2 * 2 + 4) * numbers + weights),
        "_foreach_zero_": (0, 4 * numbers),
    }
    large = linear + 2 * 96 * 64
    moments = 2 * large + 2 * 4 * large // 256 + 2 * 4 * (numbers - large)
    assert update_of(precision="mixed", optimizer="adamw-8bit") == {
        "adamw-8bit": ((2 + 4) * numbers + moments, moments + (4 + 2) * numbers)
    }


def test_muon_updates_each_matrix_apart() -> None:
    """Five iterations of three products for each matrix: 4 of attention, the router, 6 experts with 2, in 3 layers."""
    _, _, work = work_of(MIXTRAL, optimizer="muon")
    products = [op for op in work.ranks[0].optimizer.ops if op.kind == "product"]
    assert sum(op.calls for op in products) == 5 * 3 * 3 * (4 + 1 + 6 * 2)


def test_gradients_are_added_to_buffers_in_another_format() -> None:
    """Per number 2 + 4 bytes are read and 4 written in backward; the buffers are filled with zeros at the end."""
    numbers, _ = parameters_of(LLAMA)

    def passes(precision: str) -> tuple[int, int]:
        _, _, work = work_of(LLAMA, precision=precision)
        return _total(work.ranks[0].stages[0].passes["backward first"], work.ranks[0].stages[0].runs)

    plain, apart = passes("mixed"), passes("mixed-fp32-gradients")
    assert (apart[0] - plain[0], apart[1] - plain[1]) == (6 * numbers, 4 * numbers)
    assert update_of(precision="mixed-fp32-gradients")["_foreach_zero_"] == (0, 4 * numbers)


def _total(one: PassWork, runs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    def of(ops: Sequence[Op], count: Callable[[Op], int]) -> int:
        return sum(op.calls * count(op) for op in ops)

    parts = [(one.before, 1), (one.after, 1), *((one.layers[index], count) for index, count in runs)]
    read = sum(of(part.ops, lambda op: op.bytes_read) * count for part, count in parts)
    return read, sum(of(part.ops, lambda op: op.bytes_written) * count for part, count in parts)
