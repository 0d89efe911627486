"""RMSNorm op by op, as torch before 2.9 ran it, in bytes by hand."""

import torch
import torch.nn.functional as F

from counting.measurements.live_bytes import LiveBytes
from counting.measurements.meta_device import measuring
from counting.measurements.work.norms import norms_run_as
from counting.measurements.work.recorder import Recorder
from counting.measurements.work.records import summarise
from counting.work import Norms

ROWS, WIDTH = 8, 64
NUMBERS = ROWS * WIDTH


def bytes_of_a_norm(norms: Norms) -> tuple[int, int]:
    """Bytes read and written by the forward pass of a norm of (8, 64) in bf16."""
    with measuring(), norms_run_as(norms):
        x = torch.empty(ROWS, WIDTH, dtype=torch.bfloat16, device="meta")
        weight = torch.empty(WIDTH, dtype=torch.bfloat16, device="meta")
        recorder = Recorder()
        with LiveBytes([x, weight], recorder) as tracker, recorder.of(tracker):
            recorder.cut()
            out = F.rms_norm(x, (WIDTH,), weight, 1e-6)
            recorder.cut()
        assert out.dtype == torch.bfloat16
        ops = [op for stretch in recorder.take() for op in summarise(stretch)]
    return sum(op.calls * op.bytes_read for op in ops), sum(op.calls * op.bytes_written for op in ops)


def test_a_fused_norm_reads_and_writes_each_number_once() -> None:
    # reads x and the weight in bf16; writes the output and 1 / rms of each row in fp32
    assert bytes_of_a_norm("fused") == (2 * NUMBERS + 2 * WIDTH, 2 * NUMBERS + 4 * ROWS)


def test_a_norm_op_by_op() -> None:
    read = (
        2 * NUMBERS  # to fp32
        + 4 * NUMBERS  # x * x: one tensor, read once
        + 4 * NUMBERS  # mean
        + 4 * ROWS  # + eps
        + 4 * ROWS  # rsqrt
        + 4 * NUMBERS + 4 * ROWS  # x * rsqrt
        + 4 * NUMBERS  # to bf16
        + 2 * NUMBERS + 2 * WIDTH  # * weight
    )  # fmt: skip
    written = 4 * NUMBERS + 4 * NUMBERS + 3 * 4 * ROWS + 4 * NUMBERS + 2 * NUMBERS + 2 * NUMBERS
    assert bytes_of_a_norm("op_by_op") == (read, written)
