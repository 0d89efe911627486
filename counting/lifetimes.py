"""Bytes alive as tensors come and go: the arithmetic below the memory formulas. Torch-free."""

from collections.abc import Mapping

HALF = 2  # bytes of a weight or an activation
SINGLE = 4  # bytes of what is computed in fp32
LONG = 8  # bytes of an index as sort and topk return it
INT = 4  # bytes of an index as the grouped product takes it
BOOL = 1


class Lifetimes:
    """Bytes alive as tensors come and go, beside `shared` ones that never go. Without `grad` nothing is kept."""

    def __init__(self, *, shared: int, grad: bool) -> None:
        self.grad = grad
        self.live = self.peak = shared
        self.kept = self.kept_at_peak = shared if grad else 0
        self._alive: dict[str, tuple[int, bool]] = {}

    def new(self, **sizes: int) -> None:
        """One kernel's outputs, which are gone once the forward pass frees them."""
        self.born(passing=sizes, kept={})

    def keep(self, **sizes: int) -> None:
        """One kernel's outputs, which backward needs: with `grad` they outlive their `free`."""
        self.born(passing={}, kept=sizes)

    def born(self, *, passing: Mapping[str, int], kept: Mapping[str, int]) -> None:
        """One kernel's outputs, of either sort."""
        for sizes, needed in ((passing, False), (kept, self.grad)):
            for name, size in sizes.items():
                assert name not in self._alive, f"{name} is alive"
                self._alive[name] = (size, needed)
                self.live += size
                self.kept += size if needed else 0
        if self.live > self.peak:
            self.peak, self.kept_at_peak = self.live, self.kept

    def free(self, *names: str) -> None:
        """The forward pass lets go."""
        for name in names:
            size, needed = self._alive.pop(name)
            self.live -= 0 if needed else size

    def rename(self, name: str, other: str) -> None:
        """The same tensor under the name that the next block knows."""
        self._alive[other] = self._alive.pop(name)
