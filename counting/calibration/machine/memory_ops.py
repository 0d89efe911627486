"""Ops that multiply no matrices, by the bytes that they read and write, and the time of a launch."""

import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from counting.calibration.found import FoundBytes
from counting.calibration.machine.clock import seconds_of, synchronize, time_calls

_ROW = 1024  # numbers that a norm normalises
_SMALLEST_BYTES = 2**18
# Of one tensor: beyond the caches of a GPU. On a CPU beyond them too, with the others of an op, but below the 32 MiB
# from which glibc returns memory to the system after each use, and every page of the next tensor is mapped again.
LARGEST_TENSOR_BYTES = {"cuda": 2**28, "cpu": 24 * 2**20}
_LAUNCHES = 1000
_CYCLES_OF_A_WAIT = 10**8


class _MemoryOp(NamedTuple):
    """An op, and how many tensors it reads and writes, each of the same size."""

    run: Callable[[], object]
    tensors: int


def measure_bytes(device: torch.device, dtype: torch.dtype, seconds: float) -> FoundBytes:
    """Bytes a second: the fastest op of any size, which caches may help, and all of them at the largest size.

    The ops are those of a layer, a loss and an optimiser: copy, add, multiply, silu, softmax, norm, an update in place.
    Norms are left out on a CPU, where torch runs each as several ops.
    """
    best, by_op = 0.0, {}
    sizes = [size for size in (_SMALLEST_BYTES, 2**20, 2**22) if size < LARGEST_TENSOR_BYTES[device.type]]
    for size in (*sizes, LARGEST_TENSOR_BYTES[device.type]):
        for name, op in _ops(size, device, dtype).items():
            timed = time_calls(op.run, device, seconds / (6 * (len(sizes) + 1)))
            best = max(best, op.tensors * size / timed.fastest)
            by_op[name] = op.tensors * size / timed.median / 1e9  # the last size stays
    return FoundBytes(
        best_gb_per_s=best / 1e9, sustained_gb_per_s=statistics.harmonic_mean(by_op.values()), by_op=by_op
    )


def _ops(size: int, device: torch.device, dtype: torch.dtype) -> dict[str, _MemoryOp]:
    """The ops on tensors of `size` bytes."""
    shape = (size // dtype.itemsize // _ROW, _ROW)
    first, second, third = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))
    weight = torch.ones(_ROW, device=device, dtype=dtype)
    ops = {
        "copy": _MemoryOp(lambda: third.copy_(first), 2),
        "add": _MemoryOp(lambda: first + second, 3),
        "multiply": _MemoryOp(lambda: first * second, 3),
        "silu": _MemoryOp(lambda: F.silu(first), 2),
        "softmax": _MemoryOp(lambda: F.softmax(first, -1), 2),
        "update": _MemoryOp(lambda: third.lerp_(first, 0.1), 3),
    }
    if device.type == "cuda":
        ops["norm"] = _MemoryOp(lambda: F.rms_norm(first, (_ROW,), weight, 1e-5), 2)
    return ops


def measure_launch(device: torch.device) -> float:
    """Seconds from one op on a single number to the next one, in a stream that is never empty.

    A CUDA device waits first until all are enqueued. A CPU runs each when it is called: what it takes to call it, with
    a graph for backward.
    """
    number = torch.ones(1, device=device, requires_grad=True)
    factor = torch.ones(1, device=device)
    if device.type == "cpu":
        return seconds_of(lambda: number * factor, device, _LAUNCHES)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for _ in range(2):  # the first time also loads the kernels
        synchronize(device)
        torch.cuda._sleep(_CYCLES_OF_A_WAIT)
        start.record()
        for _ in range(_LAUNCHES):
            factor.mul_(1.0)
        end.record()
        synchronize(device)
    return float(start.elapsed_time(end)) / 1e3 / _LAUNCHES
