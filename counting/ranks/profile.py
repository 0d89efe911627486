"""What a witness says of one rank: bytes, traffic and FLOPs of a step of the shallow model. Torch-free.

`counting.measurements.ranks` measures a `RankProfile` in a process group that has no other process, and
`counting.formulas.layouts` computes the same. `counting.ranks.memory` extends it to the whole model.
"""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, NamedTuple

import msgspec

from counting.counts import StepFlops
from counting.recipes import ModelStates
from counting.step.profile import Stretch

RankPhase = Literal["forward", "backward", "optimizer"]
# `send` and `receive` are point to point: a send reads, a receive writes.
CollectiveOp = Literal["all_gather", "reduce_scatter", "all_reduce", "all_to_all", "send", "receive"]
# The ranks that take part: replicas; those of fully_shard; the two for experts, where ep divides them; tp; ep; cp; pp.
Axis = Literal["dp", "fsdp", "expert_dp", "expert_fsdp", "tp", "ep", "cp", "pp"]


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """Calls of one collective, and the bytes that they read and write on this rank, over all calls.

    An all-gather reads a shard and writes the whole; a reduce-scatter the reverse; an all-reduce reads and writes the
    same bytes in place; an all-to-all reads the rows that this rank sends and writes those that it receives.
    """

    calls: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            calls=self.calls + other.calls,
            bytes_in=self.bytes_in + other.bytes_in,
            bytes_out=self.bytes_out + other.bytes_out,
        )

    def __mul__(self, factor: int) -> "Traffic":
        return Traffic(calls=self.calls * factor, bytes_in=self.bytes_in * factor, bytes_out=self.bytes_out * factor)


class Collective(NamedTuple):
    """What is called, over which ranks, in which phase."""

    phase: RankPhase
    operation: CollectiveOp
    axis: Axis

    @property
    def key(self) -> str:
        """The key of its `Traffic`."""
        return f"{self.phase} {self.operation} {self.axis}"


Traffics = dict[str, Traffic]  # the key of a `Collective` -> its traffic


def collective_of(key: str) -> Collective:
    """The collective with this key."""
    return Collective(*key.split())  # type: ignore[arg-type]


def total_traffic(parts: Iterable[tuple[Mapping[str, Traffic], int]]) -> Traffics:
    """The sum of all parts, each times its factor."""
    total: Traffics = {}
    for traffics, factor in parts:
        for key, traffic in traffics.items():
            total[key] = total.get(key, Traffic()) + traffic * factor
    return total


class RankStretch(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the step between two moments, on one rank."""

    memory: Stretch
    traffic: Traffics = {}


class RankMicroBatch(msgspec.Struct, frozen=True, kw_only=True):
    """The stretches of one micro-batch in order; `backward` is in the layers' order, though it runs in reverse.

    `embedding_forward` begins with the call of the model. `loss` is final norm, head and loss, forward and backward,
    and multi-token prediction if it is trained. `embedding_backward` ends when fully_shard has reduced all gradients.
    """

    embedding_forward: RankStretch
    forward: tuple[RankStretch, ...]
    loss: RankStretch
    backward: tuple[RankStretch, ...]
    embedding_backward: RankStretch

    def phases(self) -> "list[tuple[RankStretch, int | None]]":
        """All stretches in the order of execution, each with the index of its layer, or None."""
        return [
            (self.embedding_forward, None),
            *((stretch, index) for index, stretch in enumerate(self.forward)),
            (self.loss, None),
            *((stretch, index) for index, stretch in reversed(list(enumerate(self.backward)))),
            (self.embedding_backward, None),
        ]


class RankLayer(msgspec.Struct, frozen=True, kw_only=True):
    """One layer of the shallow model, which stands for `count` layers of the whole model."""

    kind: str
    count: int
    parameters: int  # numbers that this rank holds and updates, without padding
    states: ModelStates  # as stored: fully_shard pads the shards, so that all ranks store the same bytes
    held: int  # bytes kept from its forward pass until its backward pass, without gathered parameters


class RankShare(msgspec.Struct, frozen=True, kw_only=True):
    """Ranks that hold equally many numbers: shards of the first dimension are unequal where it does not divide.

    `count` ranks, of which `first_rank` is the lowest; `parameters` and `moments` (bytes) are those of the whole model
    on each of them. All else is equal on all ranks.
    """

    scope: ClassVar[str] = "rank class"

    count: int
    first_rank: int
    parameters: int
    moments: int


class RankProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What rank 0 holds, sends and computes in one step of the shallow model, and how the other ranks differ.

    With cp it is the rank of cp with the largest peak, the lowest of several. Of several micro-batches the first, a
    middle one (which stands for all between) and the last are there.
    """

    scope: ClassVar[str] = "rank"
    quantity: ClassVar[str] = "rank_bytes"

    layers: tuple[RankLayer, ...]
    outside_parameters: int
    outside_states: ModelStates
    inputs: int  # bytes of token ids, labels and rotary tables
    buffers: int  # bytes of router correction biases, of the whole model
    first_micro_batch: RankMicroBatch
    middle_micro_batch: RankMicroBatch | None = None
    last_micro_batch: RankMicroBatch | None = None  # None if there is only one
    gradient_clipping: RankStretch | None = None  # of the whole model; None: gradients are not clipped
    optimizer_step: RankStretch
    flops: StepFlops  # of the whole model and all micro-batches, on local shapes
    shares: tuple[RankShare, ...]
    context_rank: int = 0  # of cp

    def micro_batches(self, number: int) -> list[tuple[RankMicroBatch, int]]:
        """Each distinct micro-batch of a step of `number`, in order, with the number of those that it stands for."""
        found = [(self.first_micro_batch, 1)]
        if self.middle_micro_batch is not None:
            found.append((self.middle_micro_batch, number - 2))
        if self.last_micro_batch is not None:
            found.append((self.last_micro_batch, 1))
        return found
