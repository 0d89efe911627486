"""Counts: integers by component, that add, subtract and scale.

The components are the rows of every table, the keys of the JSON and the ids of the tests. Multi-token prediction
(`mtp`) is counted in the same components but never added to the main model's.
"""

from typing import Literal

import msgspec

Kernels = Literal["fused", "eager"]


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters, FLOPs or bytes of each component; exact integers."""

    word_embedding: int = 0
    positional_embedding: int = 0
    attention: int = 0
    mlp: int = 0
    router: int = 0
    routed_experts: int = 0
    shared_experts: int = 0
    norm: int = 0
    lm_head: int = 0

    @property
    def total(self) -> int:
        """The sum over all components."""
        return sum(self.by_component().values())

    def by_component(self) -> dict[str, int]:
        """Component name -> count, zeros included, in the order of the tables."""
        return {component: getattr(self, component) for component in COMPONENTS}

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{c: getattr(self, c) + getattr(other, c) for c in COMPONENTS})

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(**{c: getattr(self, c) - getattr(other, c) for c in COMPONENTS})

    def __mul__(self, factor: int) -> "Counts":
        return Counts(**{c: getattr(self, c) * factor for c in COMPONENTS})

    __rmul__ = __mul__


COMPONENTS: tuple[str, ...] = Counts.__struct_fields__


class LayerMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes alive at the worst moment of one layer's forward pass.

    `boundary` is the layer's input, which checkpointing keeps; `saved` is what stays alive for backward once the
    pass is over (the shared rotary tables included); `transients` is everything else alive at that moment.
    """

    weights: int
    boundary: int
    saved: int
    transients: int

    @property
    def peak(self) -> int:
        """All of it together."""
        return self.weights + self.boundary + self.saved + self.transients
