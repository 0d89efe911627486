"""Whether a training step fits the memory of one device, and what would make it fit: the result. Torch-free."""

from typing import Literal

import msgspec

from counting.records.tidy import Tidy
from torch_models.spec import Kernels, ModelRecompute

FitBasis = Literal["allocated", "reserved"]


class Remedy(msgspec.Struct, frozen=True, kw_only=True):
    """A variant of the step that fits: by formula and simulation or, of a model through transformers, measured.

    Where the step's reserved bytes are known, the variant is taken to need as much beyond its allocated peak.
    """

    recompute: ModelRecompute
    loss_chunk: int | None
    needed_bytes: int


class Fit(Tidy, frozen=True, kw_only=True):
    """Whether one step, or one rank of it, fits one device: a GPU, or one die of a board with two.

    `basis` names the bytes that are compared with the capacity, beside those that a process uses before its first
    tensor (`context_bytes`) and the buffers of its communicators, where they are known. "reserved" is the most that
    the caching allocator reserves, an estimate; "allocated" is the peak of the bytes that the step allocates, without
    workspaces within kernels.
    """

    gpu: str
    rank: int | None = None  # the first of those that need most, of a step that is spread over ranks
    fits: bool
    kernels: Kernels  # "eager" too where the step was measured with fused attention, and PyTorch has none for this GPU
    allocated_bytes: int
    reserved_bytes: int | None = None  # None with the other basis
    context_bytes: int  # 0 where it is not known
    communicator_bytes: int = 0  # of a rank; 0 where it is not known
    needed_bytes: int
    capacity_bytes: int
    basis: FitBasis
    remedies: tuple[Remedy, ...]  # cheapest first; empty if the step fits, or if no variant fits
    spare_bytes: int = 0  # capacity less what is needed, whatever is given for it; negative if the step does not fit

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "spare_bytes", self.capacity_bytes - self.needed_bytes)
