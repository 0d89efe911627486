"""On which GPUs a measured training step fits as it is run, and how it would have to be run to fit.

What a step needs of a device is what it allocates at its worst moment and what a PyTorch process takes before its first
tensor (the CUDA context, `Gpu.context_bytes`, a figure with a source; nothing where none is known), against the memory
that the driver reports of one device. One device talks to no other: no communicator's buffers are in it. Where PyTorch
has no fused attention for a GPU and a model (`Gpu.fuses_grouped_queries`), the step is simulated with eager kernels.
"""

from collections.abc import Iterator, Sequence

from counting.analysis import Analysis
from counting.cost.hardware import Gpu
from counting.step.fits import Fit, Remedy
from counting.step.memory import StepMemory
from torch_models.spec import Kernels


def fits_on(analysis: Analysis, gpus: Sequence[Gpu]) -> tuple[Fit, ...]:
    """The fit on one device of each of `gpus`, in their order; none where no step of the model was measured."""
    return () if analysis.memory is None else tuple(_fit(analysis, gpu) for gpu in gpus)


def _fit(analysis: Analysis, gpu: Gpu) -> Fit:
    memory, setup = analysis.memory, analysis.setup
    assert memory is not None
    kernels, allocated = setup.kernels, memory.peak_bytes
    for other in memory.alternatives:
        same = (other.recompute, other.loss_chunk) == (setup.recompute, setup.loss_chunk)
        if same and other.kernels != setup.kernels and not gpu.fuses_grouped_queries:
            kernels, allocated = other.kernels, other.peak_bytes
    context = gpu.context_bytes or 0
    needed = allocated + context
    fits = needed <= gpu.device_capacity_bytes
    return Fit(
        gpu=gpu.name,
        fits=fits,
        kernels=kernels,
        allocated_bytes=allocated,
        context_bytes=context,
        needed_bytes=needed,
        capacity_bytes=gpu.device_capacity_bytes,
        basis="allocated",
        remedies=() if fits else tuple(_remedies(memory, kernels, context, gpu.device_capacity_bytes)),
    )


def _remedies(memory: StepMemory, kernels: Kernels, context: int, capacity: int) -> Iterator[Remedy]:
    """What would fit with these kernels, cheapest first; what costs more than another remedy must also need less."""
    least = capacity + 1
    for other in memory.alternatives:
        needed = other.peak_bytes + context
        if other.kernels == kernels and needed < least:
            yield Remedy(recompute=other.recompute, loss_chunk=other.loss_chunk, needed_bytes=needed)
            least = needed
