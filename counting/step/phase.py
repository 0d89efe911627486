"""The worst moment of a phase of the step, and the position from which it is found, stretch by stretch. Torch-free."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from counting.recipes import ModelStates
from counting.step.profile import Stretch


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """The worst moment of one phase of the step, in bytes.

    `gradients` are those of parameters. `activations` are the tensors saved before this phase's stretch that are still
    alive (including token ids, labels and rotary tables). All other bytes of the stretch are `logits_and_loss` for
    head and loss (including the passes of multi-token prediction if it is trained), else `transients`: in a layer's
    forward pass its own activations, in its backward pass their gradients. A gradient that is to be added out of place
    to one from another use of the parameter, such as a tied head's, counts as an activation until it is added.
    `gathered_parameters` and `communication_buffers` are 0 on one device.
    """

    name: str
    micro_batch: int | None  # the first in which the worst moment occurs, from 0; None in a phase without micro-batches
    layer: int | None  # the layer of the worst moment, from 0; None in a phase without layers
    layer_kind: str | None
    parameters: int
    gradients: int
    optimizer_state: int
    activations: int
    gathered_parameters: int
    communication_buffers: int
    logits_and_loss: int
    transients: int
    peak_bytes: int = 0  # the sum of all parts, whatever is given for it

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "peak_bytes", sum(getattr(self, part) for part in PARTS))


PARTS = Phase.__struct_fields__[4:-1]


class Position:
    """The bytes that are alive between two stretches, of the micro-batch with this number."""

    def __init__(self, states: ModelStates, *, buffers: int, inputs: int, gradients_stay: bool) -> None:
        self.parameters = states.weights + buffers
        self.optimizer_state = states.masters + states.moments
        self.gradients = states.gradients if gradients_stay else 0
        self.activations = inputs
        self.gathered = 0
        self.communication = 0
        self.micro_batch: int | None = None

    def pass_through(
        self, stretch: Stretch, name: str, *, layer: int | None = None, kind: str | None = None, logits: bool = False
    ) -> Phase:
        """The worst moment of `stretch`; moves the position to its end."""
        phase = self.moment(stretch, name, layer=layer, kind=kind, logits=logits)
        self._move(stretch, 1)
        return phase

    def moment(
        self, stretch: Stretch, name: str, *, layer: int | None = None, kind: str | None = None, logits: bool = False
    ) -> Phase:
        """The worst moment of `stretch`; the position stays where it is."""
        parts = stretch.peak_gradients + stretch.peak_gathered + stretch.peak_communication
        others = stretch.peak - parts + stretch.peak_released
        return Phase(
            name=name,
            micro_batch=self.micro_batch,
            layer=layer,
            layer_kind=kind,
            parameters=self.parameters,
            gradients=self.gradients + stretch.peak_gradients,
            optimizer_state=self.optimizer_state,
            activations=self.activations - stretch.peak_released,
            gathered_parameters=self.gathered + stretch.peak_gathered,
            communication_buffers=self.communication + stretch.peak_communication,
            logits_and_loss=others if logits else 0,
            transients=0 if logits else others,
        )

    def pass_run(self, stretch: Stretch, name: str, kind: str, layers: range) -> list[Phase]:
        """The worst moments of the first and the last of these equal layers, in the order of execution.

        Each layer adds the same number of bytes, so the peaks of the layers between lie in equal steps between the two.
        """
        first = self.pass_through(stretch, name, layer=layers[0], kind=kind)
        if len(layers) == 1:
            return [first]
        self._move(stretch, len(layers) - 2)
        return [first, self.pass_through(stretch, name, layer=layers[-1], kind=kind)]

    def _move(self, stretch: Stretch, times: int) -> None:
        """Go to the end of as many stretches like this one."""
        self.gradients += stretch.gradients * times
        self.gathered += stretch.gathered * times
        self.communication += stretch.communication * times
        self.activations += (stretch.net - stretch.gradients - stretch.gathered - stretch.communication) * times


def worst_of(moments: Sequence[Phase]) -> Phase:
    """The phase with the largest peak; the first of several."""
    return max(moments, key=lambda phase: phase.peak_bytes)


class RunOfLayers(NamedTuple):
    """Equal consecutive layers, each of which adds the same number of bytes."""

    kind: str
    forward: Stretch
    backward: Stretch
    layers: range


class Outside(NamedTuple):
    """The stretches of a micro-batch outside the layers."""

    embedding_forward: Stretch
    loss: Stretch
    embedding_backward: Stretch


def pass_micro_batch(
    position: Position, index: int, outside: Outside, runs: Sequence[RunOfLayers], *, mtp: bool
) -> tuple[list[Phase], list[int]]:
    """The worst moment of each phase of the micro-batch `index`, and the backward peaks of the layers in order."""
    position.micro_batch = index
    forward = [position.pass_through(outside.embedding_forward, "forward")]
    for run in runs:
        forward += position.pass_run(run.forward, "forward", run.kind, run.layers)
    loss = position.pass_through(outside.loss, "head, loss and MTP" if mtp else "head and loss", logits=True)
    backward: list[Phase] = []
    backward_peaks: list[int] = []
    for run in reversed(runs):
        ends = position.pass_run(run.backward, "backward of a layer", run.kind, run.layers[::-1])
        backward += ends
        backward_peaks += _between(ends[0].peak_bytes, ends[-1].peak_bytes, len(run.layers))
    of_embedding = position.pass_through(outside.embedding_backward, "backward of the embedding")
    position.micro_batch = None
    return [worst_of(forward), loss, worst_of(backward), of_embedding], backward_peaks[::-1]


def _between(first: int, last: int, count: int) -> list[int]:
    """`count` numbers in equal steps from `first` to `last`."""
    step = (last - first) // (count - 1) if count > 1 else 0
    return [first + step * index for index in range(count)]
