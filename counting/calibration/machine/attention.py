"""Torch's fused causal attention, forward and backward, by length and head size."""

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from counting.calibration.found import FoundAttention
from counting.calibration.machine.clock import seconds_of, time_calls

ATTENTION_LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
_HEAD_SIZES = (64, 128)
_HEADS = 16
_LONGEST_CALL = 0.1  # share of the time of one head size: a length whose call takes longer is the last one
_BACKWARD = 2.5  # products of backward to those of forward: five to two, scores computed again

# Kernel, as the catalogue calls it -> torch's backend. On a CPU the flash backend is torch's own kernel for CPUs.
_KERNELS = {
    "cpu": {"torch's flash attention for CPUs": SDPBackend.FLASH_ATTENTION},
    "cuda": {
        "FlashAttention-2": SDPBackend.FLASH_ATTENTION,
        "cuDNN": SDPBackend.CUDNN_ATTENTION,
        "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,  # which torch takes where flash attention does not run
    },
}


def measure_attention(
    device: torch.device, dtype: torch.dtype, seconds: float, show: Callable[[str], None]
) -> tuple[FoundAttention, ...]:
    """Rates of each kernel that runs here: longer sequences until one takes too long; about 16,384 tokens a GPU."""
    found: list[FoundAttention] = []
    each = seconds / len(_HEAD_SIZES) / len(_KERNELS[device.type])
    of_length = each / len(ATTENTION_LENGTHS)
    for kernel, backend in _KERNELS[device.type].items():
        for head_size in _HEAD_SIZES:
            for length in ATTENTION_LENGTHS:
                show(f"measuring attention, {kernel}, heads of {head_size}, {length} tokens ...")
                try:
                    with warnings.catch_warnings(action="ignore"):  # torch says why a kernel does not run
                        row, longest = _measure(device, dtype, kernel, backend, head_size, length, of_length)
                except RuntimeError:  # the kernel does not run on this device, or not at this size
                    break
                found.append(row)
                if 4 * longest > _LONGEST_CALL * each:
                    break
    return tuple(found)


def _measure(
    device: torch.device,
    dtype: torch.dtype,
    kernel: str,
    backend: SDPBackend,
    head_size: int,
    length: int,
    seconds: float,
) -> tuple[FoundAttention, float]:
    """One row, and the seconds of its backward pass."""
    sequences = max(1, ATTENTION_LENGTHS[-1] // length) if device.type == "cuda" else 1
    size = (sequences, _HEADS, length, head_size)
    query, key, value = (torch.randn(size, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    gradient = torch.randn(size, device=device, dtype=dtype)

    def forward() -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    with sdpa_kernel(backend):
        out = forward()

        def backward() -> object:
            return torch.autograd.grad(out, (query, key, value), gradient, retain_graph=True)

        longest = max(seconds_of(forward, device), seconds_of(backward, device))
        ascending = time_calls(forward, device, seconds / 3)
        descending = time_calls(backward, device, 2 * seconds / 3)
    flops = causal_flops(sequences, _HEADS, length, head_size)
    row = FoundAttention(
        kernel=kernel,
        head_size=head_size,
        sequence_length=length,
        forward_tflop_per_s=flops / ascending.median / 1e12,
        backward_tflop_per_s=_BACKWARD * flops / descending.median / 1e12,
    )
    return row, longest


def causal_flops(sequences: int, heads: int, length: int, head_size: int) -> int:
    """FLOPs of the causal half of both products: 2 x 2 B H C x S (S + 1) / 2."""
    return 2 * sequences * heads * head_size * length * (length + 1)
