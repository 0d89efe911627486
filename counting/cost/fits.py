"""Which GPUs have enough memory for a measured training step, and which changes would make it fit.

Needed memory = the most bytes that the caching allocator reserves for the step or, where that is not worked out, the
peak of the bytes that the step allocates; and the CUDA context, which a PyTorch process occupies before its first
tensor (`Gpu.context_bytes`; 0 if unknown); and of a rank the buffers of its communicators, one for each axis over which
it sends (`Gpu.communicator_bytes`, and `Gpu.exchange_bytes` where ranks exchange all to all; 0 if unknown). It is
compared with `Gpu.device_capacity_bytes`, the memory of one device. Where PyTorch has no fused attention for a GPU, a
dtype and a model (`Gpu.fuses_grouped_queries`), the step is simulated with eager kernels, and what is reserved for it
is not worked out.

Of a step that is spread over ranks, the rank that needs most memory must fit: one rank runs on one device.
"""

from collections.abc import Iterator, Sequence

from counting.analysis import Analysis
from counting.cost.hardware import Gpu
from counting.ranks.result import RankAnalysis, worst_of_classes
from counting.setup import Setup
from counting.step.fit import Fit, Remedy
from counting.step.memory import StepMemory
from torch_models.spec import Kernels


def worst_rank(analysis: Analysis) -> RankAnalysis | None:
    """The class of equal ranks that needs most memory, the first of several; None of a step on one device."""
    return worst_of_classes(analysis.rank_classes) if analysis.rank_classes else None


def fits_on(analysis: Analysis, gpus: Sequence[Gpu]) -> tuple[Fit, ...]:
    """Whether the step fits on one device of each GPU, in the order of `gpus`; empty if no step was measured.

    Of a step that is spread over ranks, whether each rank does.
    """
    worst = worst_rank(analysis)
    memory = analysis.memory if worst is None else worst.memory
    if memory is None:
        return ()
    return tuple(_fit(memory, worst, analysis.setup, gpu) for gpu in gpus)


def _fit(memory: StepMemory, worst: RankAnalysis | None, setup: Setup, gpu: Gpu) -> Fit:
    kernels, allocated, reserved = setup.kernels, memory.peak_bytes, None
    if memory.reserved_bytes is not None:
        reserved = max(memory.reserved_bytes)
    if not gpu.fuses_grouped_queries(setup.precision_recipe.activation_dtype):
        # With other kernels only where query heads share key and value heads.
        others = [each for each in memory.alternatives if each.kernels != setup.kernels]
        eager = {each.recompute: each for each in others if each.loss_chunk == setup.loss_chunk}
        # Not every kind of recomputation is among them; a step without any needs more.
        other = eager.get(setup.recompute, eager.get("none"))
        if other is not None:
            kernels, allocated, reserved = other.kernels, other.peak_bytes, None
    context = gpu.context_bytes or 0
    communicators = 0 if worst is None else communicator_bytes(worst, gpu)
    beyond = context + communicators + (0 if reserved is None else reserved - allocated)  # of what is allocated
    needed = allocated + beyond
    # Ring attention has no other kernels than fused ones.
    runs = worst is None or not _has_ring(worst) or gpu.fuses_grouped_queries(setup.precision_recipe.activation_dtype)
    fits = runs and needed <= gpu.device_capacity_bytes
    return Fit(
        gpu=gpu.name,
        rank=None if worst is None else worst.first_rank,
        fits=fits,
        kernels=kernels,
        allocated_bytes=allocated,
        reserved_bytes=reserved,
        context_bytes=context,
        communicator_bytes=communicators,
        needed_bytes=needed,
        capacity_bytes=gpu.device_capacity_bytes,
        basis="allocated" if reserved is None else "reserved",
        remedies=() if fits or not runs else tuple(_remedies(memory, kernels, beyond, gpu.device_capacity_bytes)),
    )


def _has_ring(rank: RankAnalysis) -> bool:
    """Whether attention runs over ranks that divide the positions."""
    return any(each.axis == "cp" for each in rank.collectives)


def communicator_bytes(rank: RankAnalysis, gpu: Gpu) -> int:
    """Buffers of the communicators of a rank: one for each axis; 0 where the catalogue does not know them."""
    axes = {each.axis for each in rank.collectives}
    exchanging = {each.axis for each in rank.collectives if each.op == "all_to_all"}
    return len(axes) * (gpu.communicator_bytes or 0) + len(exchanging) * (gpu.exchange_bytes or 0)


def _remedies(memory: StepMemory, kernels: Kernels, beyond: int, capacity: int) -> Iterator[Remedy]:
    """The alternatives with these kernels that fit, cheapest first; each needs less memory than all cheaper ones.

    `beyond` is what the step needs beyond its allocated peak; it is not worked out for each alternative.
    """
    least = capacity + 1
    for other in memory.alternatives:
        needed = other.peak_bytes + beyond
        if other.kernels == kernels and needed < least:
            yield Remedy(recompute=other.recompute, loss_chunk=other.loss_chunk, needed_bytes=needed)
            least = needed
