"""What both witnesses say of the memory of one training step: stretch by stretch, for one layer of each kind.

`counting.measurements.step` measures a `StepProfile`, `counting.formulas.memory.step` derives it, and
`counting.step_memory` extends it to the whole model. Torch-free.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec

from counting.recipes import Optimizer, Precision
from torch_models.spec import Kernels, Recompute


class StepOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a training step over one sequence is run with; the rest is the model's."""

    sequence_length: int
    kernels: Kernels
    recompute: Recompute
    precision: Precision
    optimizer: Optimizer
    mtp: bool
    loss_chunk: int | None  # tokens whose logits are in memory at a time; None for all


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
    """From each cut to the next; `gradients` are the storages that hold parameters' gradients in the end."""

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


class ModelStates(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that a run holds for its parameters from one step to the next; gradients once all have arrived."""

    weights: int
    gradients: int
    masters: int
    moments: int

    @property
    def total(self) -> int:
        """All of it together."""
        return self.weights + self.gradients + self.masters + self.moments

    def __add__(self, other: "ModelStates") -> "ModelStates":
        return ModelStates(**{f: getattr(self, f) + getattr(other, f) for f in self.__struct_fields__})

    def __mul__(self, factor: int) -> "ModelStates":
        return ModelStates(**{f: getattr(self, f) * factor for f in self.__struct_fields__})


class LayerProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One distinct decoder layer, of which the model has `count`."""

    kind: str
    count: int
    states: ModelStates
    forward: Stretch
    backward: Stretch


class StepProfile(msgspec.Struct, frozen=True, kw_only=True):
    """The step's stretches in order: embedding, layers, head and loss forth and back, layers, embedding.

    `outside_states` are of all that stands in no decoder layer: embedding, final norm, head, and, where they are
    trained, the multi-token-prediction modules, whose passes are a part of `loss`.
    """

    embedding_forward: Stretch
    layers: tuple[LayerProfile, ...]
    loss: Stretch
    embedding_backward: Stretch
    outside_states: ModelStates
    optimizer_step: int  # bytes of what the optimiser makes on the way, at its worst moment
    inputs: int  # bytes of token ids, labels and rotary tables, which are there throughout
    buffers: int  # bytes of what no optimiser updates


def model_states(parameters: int, linear_weights: int, precision: Precision, optimizer: Optimizer) -> ModelStates:
    """What a recipe holds for these parameters, of which fp8 recipes quantise the linear weights alone.

    The scales of quantised blocks, one for each 128 x 128 numbers, are left out.
    """
    rest = parameters - linear_weights
    return ModelStates(
        weights=precision.weight_bytes * linear_weights + precision.unquantised_weight_bytes * rest,
        gradients=precision.gradient_bytes * parameters,
        masters=precision.master_bytes * parameters,
        moments=optimizer.moments * precision.moment_bytes * parameters,
    )
