"""What a witness says of the memory of one training step: stretch by stretch, for one layer of each kind.

`counting.measurements.step` measures a `StepProfile`, `counting.formulas.memory` simulates it, and
`counting.step.memory` extends it to the whole model. What the forward pass keeps for backward stands in it once more,
by itself: closed forms say how much that must be (`counting.formulas.held`). Torch-free.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, NamedTuple

import msgspec

from counting.recipes import ModelStates


class Stretch(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the step, from one moment to another: bytes beyond those alive at its start.

    Of `net` and of `peak`, gradients of parameters are told apart: the storages that hold them in the end.
    `peak_released` are bytes alive at the start and no more at the peak.
    """

    peak: int
    net: int
    gradients: int = 0
    peak_gradients: int = 0
    peak_released: int = 0


Alive = Mapping[int, int]  # serial numbers of storages -> bytes


class Cut(NamedTuple):
    """A moment between two stretches."""

    at_peak: Alive  # at the worst moment since the last cut
    now: Alive


def stretches_between(cuts: Sequence[Cut], gradients: Collection[int]) -> list[Stretch]:
    """From each cut to the next; `gradients` are the storages that hold parameters' gradients in the end.

    Measurement and simulation both use it, so that neither would see it fail: the test of a step that is not cut would.
    """

    def bytes_of_gradients(alive: Alive) -> int:
        return sum(alive.get(serial, 0) for serial in gradients)

    stretches = []
    for (_, before), (at_peak, after) in pairwise(cuts):
        start, start_gradients = sum(before.values()), bytes_of_gradients(before)
        stretches.append(
            Stretch(
                peak=sum(at_peak.values()) - start,
                net=sum(after.values()) - start,
                gradients=bytes_of_gradients(after) - start_gradients,
                peak_gradients=bytes_of_gradients(at_peak) - start_gradients,
                peak_released=sum(size for serial, size in before.items() if serial not in at_peak),
            )
        )
    return stretches


class LayerProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One distinct decoder layer, of which the model has `count`."""

    kind: str
    count: int
    states: ModelStates | None = None
    held: int | None = None  # by the forward pass, until the layer's backward: kept activations, its output among them
    forward: Stretch | None = None
    backward: Stretch | None = None


class StepProfile(msgspec.Struct, frozen=True, kw_only=True):
    """The step's stretches in order: embedding, layers, head and loss forth and back, layers, embedding.

    `outside_states` are of all that stands in no decoder layer: embedding, final norm, head, and, where they are
    trained, the multi-token-prediction modules, whose passes are a part of `loss`.
    """

    scope: ClassVar[str] = "step"
    quantity: ClassVar[str] = "step_memory_bytes"

    layers: tuple[LayerProfile, ...]
    embedding_held: int | None = None  # the residual stream before the first layer
    loss_held: int | None = None  # by final norm, head and loss (and multi-token prediction) when backward begins
    embedding_forward: Stretch | None = None
    loss: Stretch | None = None
    embedding_backward: Stretch | None = None
    outside_states: ModelStates | None = None
    optimizer_step: int | None = None  # bytes of what the optimiser makes on the way, at worst; None: not known
    inputs: int | None = None  # bytes of token ids, labels and rotary tables, which are there throughout
    buffers: int | None = None  # bytes of what no optimiser updates
