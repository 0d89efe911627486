"""The order in which a rank of a pipeline runs its passes, by the rules of each schedule.

p ranks, v stages on each, m micro-batches; F is a forward pass, B a backward pass, I and W its two halves, which
compute the gradients of a stage's input and those of its parameters.

- gpipe: all F, then all B (Huang et al. 2019, arXiv 1811.06965, fig. 2c);
- 1f1b: p - rank F, then B and F in turn, then the rest of B (Narayanan et al. 2021, arXiv 2104.04473, §2.2.1);
- interleaved: the same over the v stages of a rank, of which each runs a round of micro-batches before the next one
  (ibid., §2.2.2);
- zb: as interleaved with B in halves; I runs where B would, W `rank` passes later (Qi et al. 2023, arXiv 2401.10241,
  §2, the schedule with the memory of 1F1B);
- zbv: two stages on each rank, of which the second is on the way back, and B in halves (ibid., §6);
- dualpipev: the same stages, a forward pass of the one beside a backward pass of the other (DeepSeek-V3, arXiv
  2412.19437, §3.2.1; https://github.com/deepseek-ai/DualPipe, the V variant).

Where papers leave a choice it is torch's (2.13, torch/distributed/pipelining/schedules.py). Nothing is read from there.
"""

from collections.abc import Iterator
from typing import NamedTuple

from counting.ranks.pipeline import PassKind
from torch_models.layout import Layout
from torch_models.stages import micro_batches_of_round


class Pass(NamedTuple):
    """One pass of one micro-batch through one stage."""

    kind: PassKind
    stage: int
    micro_batch: int


def passes_in_order(layout: Layout, pipeline_rank: int, micro_batches: int) -> list[Pass]:
    """Return the passes of one rank, without those that reduce gradients; `layout` is resolved."""
    match layout.schedule:
        case "gpipe":
            return list(_fill_and_drain(pipeline_rank, micro_batches))
        case "1f1b":
            return list(_one_forward_one_backward(layout.pp, pipeline_rank, micro_batches))
        case "interleaved" | "zb":
            return list(_looped(layout, pipeline_rank, micro_batches))
        case "zbv":
            return [each for each in _zero_bubble_v(layout, pipeline_rank, micro_batches) if each[2] < micro_batches]
        case "dualpipev":
            return _DualPipeV(layout, pipeline_rank, micro_batches).passes()
    raise AssertionError(f"no order of schedule {layout.schedule}")


def _fill_and_drain(stage: int, micro_batches: int) -> Iterator[Pass]:
    yield from (Pass("forward", stage, index) for index in range(micro_batches))
    yield from (Pass("backward", stage, index) for index in range(micro_batches))


def _one_forward_one_backward(stages: int, stage: int, micro_batches: int) -> Iterator[Pass]:
    ahead = min(stages - stage, micro_batches)
    yield from (Pass("forward", stage, index) for index in range(ahead))
    for index in range(micro_batches):
        yield Pass("backward", stage, index)
        if ahead + index < micro_batches:
            yield Pass("forward", stage, ahead + index)


def _looped(layout: Layout, rank: int, micro_batches: int) -> Iterator[Pass]:
    """Interleaved stages. Pass k of a rank is that of one stage; those of backward take the stages in reverse.

    The passes forward before the first one backward are those of the rounds of all stages but one, and two for each
    rank that follows: a micro-batch is there and back after that many. With halves it is one for each, since the second
    half does not delay it.
    """
    assert layout.stages_per_rank is not None, "a resolved layout"
    stages, halves = layout.stages_per_rank, layout.schedule == "zb"
    of_round = micro_batches_of_round(layout.pp, micro_batches)
    total = stages * micro_batches
    ahead = min((stages - 1) * of_round + (1 if halves else 2) * (layout.pp - 1 - rank), total)

    def one(kind: PassKind, number: int) -> Pass:
        rounds, in_round = divmod(number, stages * of_round)
        place, in_stage = divmod(in_round, of_round)
        if kind != "forward":
            place = stages - 1 - place
        return Pass(kind, place * layout.pp + rank, rounds * of_round + in_stage)

    yield from (one("forward", number) for number in range(ahead))
    for number in range(total):
        if ahead + number < total:
            yield one("forward", ahead + number)
        yield one("input_backward" if halves else "backward", number)
        if halves and number >= rank:
            yield one("weight_backward", number - rank)
    if halves:
        yield from (one("weight_backward", number) for number in range(max(total - rank, 0), total))


class _Counters:
    """The passes of each kind of the two stages of a rank, numbered in the order in which they are asked for."""

    def __init__(self, layout: Layout, rank: int) -> None:
        self.stages = layout.stages_of_rank(rank)
        self.done: dict[tuple[PassKind, int], int] = {}

    def number(self, kind: PassKind, place: int) -> int:
        """How many passes of this kind there were."""
        return self.done.get((kind, place), 0)

    def next(self, kind: PassKind, place: int) -> Pass:
        """The next pass of this kind; `place` is 0 for the stage on the way there, 1 for that on the way back."""
        number = self.number(kind, place)
        self.done[kind, place] = number + 1
        return Pass(kind, self.stages[place], number)


def _zero_bubble_v(layout: Layout, rank: int, micro_batches: int) -> Iterator[Pass]:
    """Both halves run one after the other, but at the end, where W fills the time for I.

    With few micro-batches those that are missing are left out of the order for 2 p - 1.
    """
    pp = layout.pp
    total = max(2 * pp - 1, micro_batches)
    of = _Counters(layout, rank)

    def both(place: int) -> Iterator[Pass]:
        yield of.next("input_backward", place)
        yield of.next("weight_backward", place)

    yield from (of.next("forward", 0) for _ in range(2 * (pp - rank) - 1))
    for _ in range(rank):
        yield of.next("forward", 1)
        yield of.next("forward", 0)
    for _ in range(pp - rank):
        yield of.next("forward", 1)
        yield from both(1)
    while of.number("forward", 1) < total:
        if of.number("forward", 0) < total:
            yield of.next("forward", 0)
        yield from both(0)
        yield of.next("forward", 1)
        yield from both(1)
    for _ in range(rank):
        yield of.next("input_backward", 0)
        yield of.next("input_backward", 1)
    for _ in range(pp - rank):
        yield of.next("input_backward", 0)
        yield of.next("weight_backward", 0)
    for place in (1, 0):
        yield from (of.next("weight_backward", place) for _ in range(total - of.number("weight_backward", place)))


class _DualPipeV:
    """Eight parts, of which the fourth is the steady one; the comments name their passes, 0 there and 1 back."""

    def __init__(self, layout: Layout, rank: int, micro_batches: int) -> None:
        self.layout, self.rank, self.micro_batches = layout, rank, micro_batches
        self.numbers = _Counters(layout, rank)
        self.waiting: list[Pass] = []  # second halves that have not run
        self.found: list[Pass] = []

    def passes(self) -> list[Pass]:
        rank, behind = self.rank, self.layout.pp - self.rank - 1
        for _ in range(2 * behind):  # F0
            self._forward(0)
        for _ in range(rank + 1):  # F0 F1
            self._forward(0)
            self._forward(1)
        for _ in range(behind):  # I1 W1 F1
            self._backward(1, halves=True)
            self._weights()
            self._forward(1)
        for _ in range(self.micro_batches - 2 * self.layout.pp + rank + 1):  # F0 with B1, F1 with B0
            self._forward(0)
            self._backward(1)
            self._forward(1)
            self._backward(0)
        for _ in range(behind):  # B1, F1 with B0
            self._backward(1)
            self._forward(1)
            self._backward(0)
        halves = False
        for index in range(rank + 1):  # B1 B0, and from the middle on I1 I0
            middle = index == (rank + 1) // 2
            halves = halves or (middle and rank % 2 == 1)
            self._backward(1, halves=halves)
            halves = halves or (middle and rank % 2 == 0)
            self._backward(0, halves=halves)
        for _ in range(behind):  # W, and B0 or I0
            self._weights()
            self._backward(0, halves=halves)
        for _ in range(rank + 1):  # W
            self._weights()
        return self.found

    def _forward(self, place: int) -> None:
        self.found.append(self.numbers.next("forward", place))

    def _backward(self, place: int, *, halves: bool = False) -> None:
        """Whole or in halves, a backward pass is that of the next micro-batch."""
        _, stage, micro_batch = self.numbers.next("backward", place)
        if not halves:
            self.found.append(Pass("backward", stage, micro_batch))
            return
        self.found.append(Pass("input_backward", stage, micro_batch))
        self.waiting.append(Pass("weight_backward", stage, micro_batch))

    def _weights(self) -> None:
        if self.waiting:
            self.found.append(self.waiting.pop(0))
