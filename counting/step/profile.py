"""The memory of one training step as a witness returns it: stretch by stretch, for one layer of each kind.

`counting.measurements.step` measures a `StepProfile`, `counting.formulas.memory` simulates it, and
`counting.step.memory` extends it to the whole model and to all micro-batches. The bytes that the forward pass keeps for
backward are also separate fields (`held`), which the closed forms of `counting.formulas.held` compute too. Torch-free.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import msgspec

from counting.recipes import ModelStates


class Stretch(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the step, between two moments. All bytes are relative to those alive at its start.

    `net` is the difference at the end, `peak` the difference at the worst moment. `gradients` and `peak_gradients` are
    the parts of these in storages that hold parameters' gradients at the end of the step. `peak_released` are bytes
    that are alive at the start and no longer at the peak. On a rank, `gathered` and `peak_gathered` are the parts in
    parameters that are gathered from their shards, `communication` and `peak_communication` those in the buffers that
    collectives read and write; `peak_released` then is the rest of what was alive at the start.
    """

    peak: int
    net: int
    gradients: int = 0
    peak_gradients: int = 0
    peak_released: int = 0
    gathered: int = 0
    peak_gathered: int = 0
    communication: int = 0
    peak_communication: int = 0


Alive = Mapping[int, int]  # serial numbers of storages -> bytes


class Cut(NamedTuple):
    """A moment between two stretches."""

    at_peak: Alive  # storages at the worst moment since the last cut
    now: Alive


def stretches_between(cuts: Sequence[Cut], gradients: Collection[int]) -> list[Stretch]:
    """The stretch from each cut to the next; `gradients` are the storages that hold parameters' gradients at the end.

    Measurement and simulation share this function, so their comparison cannot find an error in it; the test that
    measures a step without cuts can.
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


FsdpModule = Literal["model", "embedding", "norm", "head", "mtp", "experts"]
FsdpHook = Literal["before_forward", "after_forward", "before_backward", "after_backward"]


class Hook(NamedTuple):
    """A moment at which fully_shard may act on a module: around its forward pass, and around its backward pass.

    Backward of a module begins when the gradient of its output is complete, and ends when those of its inputs are. The
    hooks of decoder layers are not listed: they are at the beginning and the end of the layers' stretches.
    """

    module: FsdpModule
    hook: FsdpHook
    depth: int = 0  # of the prediction: 0 is the main model


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a part of a stretch, and the worst moment of that part.

    All bytes are relative to those alive at the start of the stretch. `released` are bytes that were alive there and no
    longer are; without those of parameters' gradients.
    """

    hook: Hook | None  # None: the end of the stretch
    peak: int
    peak_gradients: int
    peak_released: int
    net: int
    gradients: int
    released: int


def whole_stretches(cuts: Sequence[tuple[Hook | None, Cut]]) -> list[Cut]:
    """The cuts between stretches, each with the worst moment since the one before it."""
    whole: list[Cut] = []
    worst: Alive | None = None
    for hook, (at_peak, now) in cuts:
        if worst is None or sum(at_peak.values()) > sum(worst.values()):
            worst = at_peak
        if hook is None:
            whole.append(Cut(worst, now))
            worst = None
    return whole


def moments_of(cuts: Sequence[tuple[Hook | None, Cut]], gradients: Collection[int]) -> list[tuple[Moment, ...]]:
    """The moments of each stretch; a stretch ends with the cut that has no hook. The first cut is where all begins."""
    stretches: list[tuple[Moment, ...]] = []
    (_, (_, start)), *rest = cuts
    found: list[Moment] = []
    for hook, (at_peak, now) in rest:
        peak, net = _Change(start, at_peak, gradients), _Change(start, now, gradients)
        found.append(
            Moment(
                hook=hook,
                peak=peak.total,
                peak_gradients=peak.gradients,
                peak_released=peak.released,
                net=net.total,
                gradients=net.gradients,
                released=net.released,
            )
        )
        if hook is None:
            stretches.append(tuple(found))
            found, start = [], now
    return stretches


class _Change:
    """What is alive now, relative to the start."""

    def __init__(self, start: Alive, now: Alive, gradients: Collection[int]) -> None:
        self.total = sum(now.values()) - sum(start.values())
        self.gradients = sum(now.get(serial, 0) - start.get(serial, 0) for serial in gradients)
        self.released = sum(size for serial, size in start.items() if serial not in now and serial not in gradients)


class LayerPasses(msgspec.Struct, frozen=True, kw_only=True):
    """Forward and backward of one distinct decoder layer, of which the model has `count`."""

    kind: str
    count: int
    forward: Stretch
    backward: Stretch


class Passes(msgspec.Struct, frozen=True, kw_only=True):
    """The stretches of one micro-batch in order: embedding, layers, loss (both passes), layers, embedding.

    `loss` is final norm, head and loss, forward and backward, and multi-token prediction if it is trained.
    """

    embedding_forward: Stretch
    layers: tuple[LayerPasses, ...]
    loss: Stretch
    embedding_backward: Stretch
    moments: tuple[tuple[Moment, ...], ...] | None = None  # of each stretch in the order of execution, under a layout


def passes_of(
    stretches: Sequence[Stretch],
    layers: Sequence[tuple[str, int]],
    moments: Sequence[tuple[Moment, ...]] | None = None,
) -> Passes:
    """The passes of one micro-batch from their stretches in order; `layers` are kind and count of each."""
    number = len(layers)
    embedding_forward, *forward = stretches[: number + 1]
    loss, *backward, embedding_backward = stretches[number + 1 :]
    return Passes(
        embedding_forward=embedding_forward,
        layers=tuple(
            LayerPasses(kind=kind, count=count, forward=on_way, backward=back)
            for (kind, count), on_way, back in zip(layers, forward, reversed(backward), strict=True)
        ),
        loss=loss,
        embedding_backward=embedding_backward,
        moments=None if moments is None else tuple(moments),
    )


class LayerProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What one distinct decoder layer keeps, of which the model has `count`."""

    kind: str
    count: int
    states: ModelStates | None = None
    held: int | None = None  # bytes kept from its forward pass until its backward pass, including its output


class StepProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What a step keeps, and the stretches of its micro-batches.

    The first micro-batch finds no gradients, unless the last step left them; each later one finds those of all
    parameters. All later ones are equal, so `later_micro_batch` stands for each; it is None if there is only one.

    `outside_states` are those of all modules outside the decoder layers: embedding, final norm, head, and, if they are
    trained, the multi-token-prediction modules.
    """

    scope: ClassVar[str] = "step"
    quantity: ClassVar[str] = "step_memory_bytes"

    layers: tuple[LayerProfile, ...]
    embedding_held: int | None = None  # the residual stream before the first layer
    loss_held: int | None = None  # by final norm, head and loss (and multi-token prediction) when backward begins
    first_micro_batch: Passes | None = None
    later_micro_batch: Passes | None = None
    last_micro_batch: Passes | None = None  # on a rank, where the last one differs
    outside_states: ModelStates | None = None
    gradient_clipping: int | None = None  # peak bytes of its temporary tensors; None: gradients are not clipped
    optimizer_step: int | None = None  # peak bytes of the optimiser's temporary tensors; None: not known
    inputs: int | None = None  # bytes of token ids, labels and rotary tables, alive during the whole step
    buffers: int | None = None  # bytes of tensors that no optimiser updates: router correction biases
