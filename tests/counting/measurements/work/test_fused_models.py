"""The rule of compiled layers on whole models and under layouts."""

from collections.abc import Iterator
from typing import Any

import pytest

from counting.timing import work_of_step
from counting.work import Op, StepWork, StretchWork
from tests.counting.measurements.rank_runs import layout_of, resolved
from tests.shrunken import FAMILIES
from torch_models.fields.config import spec_from_fields
from torch_models.recomputed_layers import with_recompute

LENGTH = 32


def work_of(family: str, axes: dict[str, Any] | None = None, **settings: Any) -> StepWork:
    spec = spec_from_fields(FAMILIES[family], family)
    setup = resolved(spec, **{"sequence_length": LENGTH, **settings})
    return work_of_step(with_recompute(spec, setup.recompute), setup, layout_of(**axes) if axes else None)


def layers_of(work: StepWork) -> Iterator[StretchWork]:
    for stage in work.ranks[0].stages:
        for one in stage.passes.values():
            yield from one.layers


def multiplied(ops: tuple[Op, ...]) -> list[Op]:
    return [op for op in ops if op.kind != "memory"]


def memory_bytes(ops: tuple[Op, ...]) -> int:
    return sum(op.calls * (op.bytes_read + op.bytes_written) for op in ops if op.kind == "memory")


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_layers_multiply_the_same_and_touch_less(family: str) -> None:
    for layer in layers_of(work_of(family)):
        assert layer.fused_ops is not None
        assert multiplied(layer.fused_ops) == multiplied(layer.ops)
        assert memory_bytes(layer.fused_ops) < memory_bytes(layer.ops)


@pytest.mark.parametrize("axes", [{"tp": 2}, {"fsdp": 2, "tp": 2, "sequence_parallel": False}, {"fsdp": 2, "pp": 2}])
def test_execution_says_which_ops_run(axes: dict[str, Any]) -> None:
    """Compiled, the ops of layers are those that eager execution has beside; all else runs op by op."""
    eager, compiled = (work_of("llama", axes, execution=each, micro_batches=2) for each in ("eager", "compiled"))
    for one, other in zip(layers_of(eager), layers_of(compiled), strict=True):
        assert one.fused_ops == other.fused_ops == other.ops
        assert not one.ops or memory_bytes(one.ops) >= memory_bytes(other.ops)
    of_eager, of_compiled = (
        [(each.before, each.after) for stage in work.ranks[0].stages for each in stage.passes.values()]
        for work in (eager, compiled)
    )
    assert of_eager == of_compiled


LOGITS, TARGETS = 32 * 96 * 2, 32 * 8  # bytes of 32 positions: 96 words in 16 bits; an index


def generated(stretch: StretchWork) -> list[tuple[int, int]]:
    """Bytes read and written of fused ops; products are as they were."""
    assert stretch.fused_ops is not None
    assert multiplied(stretch.fused_ops) == multiplied(stretch.ops)
    return [(op.bytes_read, op.bytes_written) for op in stretch.fused_ops if op.kind == "memory"]


def test_the_bounds_loss_reads_logits_once_and_writes_their_gradient_once() -> None:
    """Beside the norm before and after it. It writes the loss, 4 bytes. Op by op six ops go over the logits."""
    stage = work_of("llama").ranks[0].stages[0]
    loss = stage.passes["backward first"].before
    (kernel,) = [each for each in generated(loss) if each[0] == LOGITS + TARGETS]
    assert kernel == (LOGITS + TARGETS, LOGITS + 4)
    assert len(generated(loss)) == 3
    assert sum(op.bytes_read + op.bytes_written > 2 * LOGITS for op in loss.ops if op.kind == "memory") == 6


def test_the_bounds_loss_of_a_pipeline_keeps_logits() -> None:
    """Not their logarithms in 32 bits: forward reads them and writes the loss and its divisor, 4 bytes each.

    Backward reads logits, targets and the divisor in 4 bytes, and writes the gradient.
    """
    last = work_of("llama", {"fsdp": 2, "pp": 2}, micro_batches=2).ranks[-1].stages[0]
    forward, backward = last.passes["forward nothing"].after, last.passes["backward parameters"].before
    assert (LOGITS + TARGETS, 4 + 4) in generated(forward)
    assert (LOGITS + TARGETS + 4, LOGITS) in generated(backward)


def test_golden_norm_that_is_gathered() -> None:
    """With tp 2 and sequence parallelism a rank has 16 of 32 positions, of 64 numbers in 16 bits: 2,048 bytes.

    The norm before attention reads them and 64 weights, 128 bytes; it writes as many, which the ranks of tp gather, and
    1 / rms of 16 rows in fp32, 64 bytes, for backward.
    """
    stage = work_of("llama", {"tp": 2}).ranks[0].stages[0]
    ops = stage.passes["forward first"].layers[0].fused_ops
    assert ops is not None
    assert (2048 + 128, 2048 + 64) in [(op.bytes_read, op.bytes_written) for op in ops if op.name == "generated"]
