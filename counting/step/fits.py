"""Whether a training step fits the memory of one device, and what would make it fit: the result. Torch-free."""

from typing import Literal

import msgspec

from torch_models.spec import Recompute


class Remedy(msgspec.Struct, frozen=True, kw_only=True):
    """The same step run otherwise, so that it fits; by formula and simulation, not measured."""

    recompute: Recompute
    loss_chunk: int | None
    needed_bytes: int


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """One step of one sequence on one device of a GPU: a die, where a board has two.

    `basis` says what is compared: "allocated" is the peak of what the step allocates, and what a process takes of the
    device before its first tensor, where that is known. What the caching allocator reserves beyond it is left out.
    """

    gpu: str
    fits: bool
    allocated_bytes: int
    needed_bytes: int
    capacity_bytes: int
    basis: Literal["allocated"]
    remedies: tuple[Remedy, ...]  # cheapest first; empty where the step fits, or nothing makes it

    @property
    def spare_bytes(self) -> int:
        """What is left of the device; below zero what is lacking."""
        return self.capacity_bytes - self.needed_bytes
