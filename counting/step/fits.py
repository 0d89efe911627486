"""Whether a training step fits the memory of one device, and what would make it fit: the result. Torch-free."""

from typing import Literal

import msgspec

from torch_models.spec import Kernels, Recompute


class Remedy(msgspec.Struct, frozen=True, kw_only=True):
    """The same step run otherwise, so that it fits; by formula and simulation, not measured."""

    recompute: Recompute
    loss_chunk: int | None
    needed_bytes: int


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """One step of one sequence on one device of a GPU: a die, where a board has two.

    `basis` "allocated": `needed_bytes` is the peak of what the step allocates and, where it is known, what a process
    takes of the device before its first tensor (`context_bytes`). What the caching allocator reserves beyond it, and
    workspaces within kernels, are left out.
    """

    gpu: str
    fits: bool
    kernels: Kernels  # "eager" too where the step was measured with fused attention, and PyTorch has none for this GPU
    allocated_bytes: int
    context_bytes: int  # 0 where it is not known
    needed_bytes: int
    capacity_bytes: int
    basis: Literal["allocated"]
    remedies: tuple[Remedy, ...]  # cheapest first; empty where the step fits, or nothing makes it

    @property
    def spare_bytes(self) -> int:
        """What is left of the device; below zero what is lacking."""
        return self.capacity_bytes - self.needed_bytes
