"""Which GPUs have enough memory for a measured training step, and which changes would make it fit.

Needed memory = the peak of the bytes that the step allocates + the CUDA context, which a PyTorch process occupies
before its first tensor (`Gpu.context_bytes`; 0 if unknown). It is compared with `Gpu.device_capacity_bytes`, the memory
of one device. Buffers of communicators are not included, because the step runs on one device.
"""

from collections.abc import Iterator, Sequence

from counting.analysis import Analysis
from counting.cost.hardware import Gpu
from counting.step.fits import Fit, Remedy


def fits_on(analysis: Analysis, gpus: Sequence[Gpu]) -> tuple[Fit, ...]:
    """Whether the step fits on one device of each GPU, in the order of `gpus`; empty if no step was measured."""
    return () if analysis.memory is None else tuple(_fit(analysis, gpu) for gpu in gpus)


def _fit(analysis: Analysis, gpu: Gpu) -> Fit:
    memory = analysis.memory
    assert memory is not None
    context = gpu.context_bytes or 0
    needed = memory.peak_bytes + context
    fits = needed <= gpu.device_capacity_bytes
    return Fit(
        gpu=gpu.name,
        fits=fits,
        allocated_bytes=memory.peak_bytes,
        needed_bytes=needed,
        capacity_bytes=gpu.device_capacity_bytes,
        basis="allocated",
        remedies=() if fits else tuple(_remedies(analysis, context, gpu.device_capacity_bytes)),
    )


def _remedies(analysis: Analysis, context: int, capacity: int) -> Iterator[Remedy]:
    """The alternatives that fit, cheapest first; each one needs less memory than all cheaper ones."""
    assert analysis.memory is not None
    least = capacity + 1
    for other in analysis.memory.alternatives:
        needed = other.peak_bytes + context
        if needed < least:
            yield Remedy(recompute=other.recompute, loss_chunk=other.loss_chunk, needed_bytes=needed)
            least = needed
