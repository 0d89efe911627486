"""Layers as other software runs them, in bytes by hand."""

import pytest
import torch
import torch.nn.functional as F

from counting.measurements.live_bytes import LiveBytes
from counting.measurements.meta_device import measuring
from counting.measurements.work.fused import summarise_compiled
from counting.measurements.work.recorder import Recorder
from counting.measurements.work.records import summarise
from counting.measurements.work.styles import layers_run_as
from counting.work import LayerStyle, Norms, Rotation
from torch_models.modules.attention import grouped_queries, latents

ROWS, WIDTH = 8, 64
NUMBERS = ROWS * WIDTH


def bytes_of_a_norm(norms: Norms) -> tuple[int, int]:
    """Bytes read and written by the forward pass of a norm of (8, 64) in bf16."""
    with measuring(), layers_run_as(LayerStyle(norms=norms)):
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


SEQUENCES, POSITIONS, HEADS, GROUPS, CHANNELS = 2, 16, 4, 2, 8


def bytes_of_a_rotation(rotation: Rotation, *, compiled: bool) -> int:
    style = LayerStyle(rotation=rotation)
    with measuring(), layers_run_as(style):
        shape = (SEQUENCES, POSITIONS, HEADS, CHANNELS)
        x = torch.empty(shape, dtype=torch.bfloat16, device="meta", requires_grad=True)
        table = torch.empty(POSITIONS, CHANNELS // 2, dtype=torch.float32, device="meta")
        recorder = Recorder()
        with LiveBytes([x, table], recorder) as tracker, recorder.of(tracker):
            recorder.cut()
            out = grouped_queries.apply_rotary(x, (table, table), False)
            recorder.cut()
        assert out.shape == x.shape
        _, stretch = recorder.take()
    (ops,) = summarise_compiled([stretch], [0]) if compiled else [summarise(stretch)]
    return sum(op.calls * (op.bytes_read + op.bytes_written) for op in ops)


@pytest.mark.parametrize("compiled", [False, True])
def test_complex_numbers_are_multiplied_in_fp32_by_a_kernel_of_their_own(compiled: bool) -> None:
    """To fp32, read 2 and write 4 bytes a channel; times a table of 8 bytes a pair, read 4 and write 4; back, 4 and 2.

    A compiler makes no code of complex numbers, so it can join none of the three.
    """
    numbers = SEQUENCES * POSITIONS * HEADS * CHANNELS
    assert bytes_of_a_rotation("complex", compiled=compiled) == 20 * numbers + 8 * POSITIONS * CHANNELS // 2


def test_a_real_rotation_compiled_reads_and_writes_each_number_once() -> None:
    # cosines and sines are one tensor here
    numbers, table = SEQUENCES * POSITIONS * HEADS * CHANNELS, 4 * POSITIONS * CHANNELS // 2
    assert bytes_of_a_rotation("real", compiled=True) == 4 * numbers + table


def test_keys_and_values_are_copied_for_each_query_head() -> None:
    """Keys and values of 2 heads, read once and written for 4; attention has the same FLOPs as without."""
    found = {}
    for heads in ("shared", "repeated"):
        with measuring(), layers_run_as(LayerStyle(key_value_heads=heads)):
            query, key, value = (
                torch.empty(SEQUENCES, count, POSITIONS, CHANNELS, dtype=torch.bfloat16, device="meta")
                for count in (HEADS, GROUPS, GROUPS)
            )
            recorder = Recorder()
            with LiveBytes([query, key, value], recorder) as tracker, recorder.of(tracker):
                recorder.cut()
                F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
                recorder.cut()
            _, stretch = recorder.take()
            found[heads] = summarise(stretch)
    (shared,) = found["shared"]
    copies, repeated = found["repeated"]
    numbers = SEQUENCES * POSITIONS * CHANNELS
    assert (copies.calls, copies.bytes_read, copies.bytes_written) == (2, 2 * GROUPS * numbers, 2 * HEADS * numbers)
    assert (repeated.flops, repeated.shape) == (shared.flops, shared.shape)


def test_modules_are_as_before_outside() -> None:
    before = F.rms_norm, F.scaled_dot_product_attention, grouped_queries.apply_rotary, latents.apply_rotary
    with layers_run_as(LayerStyle(norms="op_by_op", rotation="complex", key_value_heads="repeated")):
        assert F.rms_norm is not before[0]
    assert (F.rms_norm, F.scaled_dot_product_attention, grouped_queries.apply_rotary, latents.apply_rotary) == before
