"""The passes of all ranks of a pipeline laid out in time, in the order of each rank.

A pass begins when the rank has ended the one before and what it needs has arrived: a forward pass the output of the
stage before, a backward pass (or its first half) the gradient of the stage after. A message leaves when the pass that
makes it has ended, and takes its time beside what the ranks run meanwhile. The collectives of an `unshard` pass run
beside the passes that follow, until `wait` waits for them.

Waiting is exposed communication for as long as the message is under way, and bubble before that. Without a pipeline
there is one rank, and nothing to wait for.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from counting.cost.step_time.streams import PassTime, TraceSegment
from counting.ranks.profile import Axis
from counting.work import OrderedPass

Timetable = Mapping[tuple[int, str], "TimedPass"]  # by the stage and the key of a pass
_Event = tuple[str, int, int | None]


class TimedPass(NamedTuple):
    """The time of a pass, and the seconds of collectives that run beside what follows it (of `unshard`)."""

    time: PassTime
    beside: float = 0.0
    beside_axis: Axis = "fsdp"


class Stages(NamedTuple):
    """On which rank each stage is, and how long its output and the gradient of its input are under way."""

    rank_of: Mapping[int, int]
    message_seconds: Mapping[int, tuple[float, float]] = {}


class RankTime(NamedTuple):
    """What a rank does until its last pass ends, in seconds from the begin of the step."""

    end: float
    products: float
    attention: float
    memory: float
    communication: dict[Axis, float]
    bubble: float
    starts: tuple[float, ...]  # of each pass
    ends: tuple[float, ...]

    @property
    def busy(self) -> float:
        """Seconds that it does not wait for other stages."""
        return self.products + self.attention + self.memory + sum(self.communication.values())


def lay_out_ranks(
    orders: Sequence[Sequence[OrderedPass]], timetable: Timetable, stages: Stages, beside_share: float
) -> list[RankTime]:
    """When each rank runs each of its passes; `orders` and the result are by rank of the pipeline.

    An order in which a rank waits for what no other sends is an `AssertionError`.
    """
    layout = _Pipeline(orders, timetable, stages, beside_share)
    layout.run()
    return [rank.result() for rank in layout.ranks]


class _Rank:
    """One rank at one moment, and where its time went so far."""

    def __init__(self, order: Sequence[OrderedPass]) -> None:
        self.order = order
        self.position = 0
        self.now = self.bubble = self.slowed = 0.0
        self.gathering = 0.0  # when the collectives beside the passes have ended
        self.gathered: dict[int, float] = {}  # the same of one stage
        self.ran: Counter[tuple[int, str]] = Counter()
        self.waited: dict[Axis, float] = {}
        self.starts: list[float] = []
        self.ends: list[float] = []
        self.timetable: Timetable = {}

    def wait(self, until: float, axis: Axis, message: float | None = None) -> None:
        """Wait, of which at most the seconds of a message are communication; None: all of it."""
        seconds = until - self.now
        if seconds <= 0:
            return
        under_way = seconds if message is None else min(message, seconds)
        if under_way:
            self.waited[axis] = self.waited.get(axis, 0.0) + under_way
        self.bubble += seconds - under_way
        self.now = until

    def result(self) -> RankTime:
        products, attention, memory = self.slowed, 0.0, 0.0
        communication = dict(self.waited)
        for key, times in self.ran.items():
            time = self.timetable[key].time
            products += time.products * times
            attention += time.attention * times
            memory += time.memory * times
            for axis, seconds in time.communication:
                communication[axis] = communication.get(axis, 0.0) + seconds * times
        return RankTime(
            self.now,
            products,
            attention,
            memory,
            communication,
            self.bubble,
            tuple(self.starts),
            tuple(self.ends),
        )


class _Pipeline:
    def __init__(
        self, orders: Sequence[Sequence[OrderedPass]], timetable: Timetable, stages: Stages, beside_share: float
    ) -> None:
        self.ranks = [_Rank(order) for order in orders]
        for rank in self.ranks:
            rank.timetable = timetable
        self._timetable, self._stages = timetable, stages
        self._slower = 1 / beside_share - 1
        self._last = max(stages.rank_of)
        self._there: dict[_Event, tuple[float, float]] = {}  # when it arrived, and how long it was under way
        self._waiting: dict[_Event, int] = {}
        self._ready = deque(range(len(orders)))
        self._exchanges = sum(one.kind == "exchange" for order in orders for one in order)

    def run(self) -> None:
        while self._ready:
            self._go_on(self._ready.popleft())
        stuck = [
            f"rank {number} waits in {rank.order[rank.position]}"
            for number, rank in enumerate(self.ranks)
            if rank.position < len(rank.order)
        ]
        assert not stuck, f"deadlock: {'; '.join(stuck)}"

    def _go_on(self, number: int) -> None:
        """Run the passes of a rank until it needs what is not there."""
        rank = self.ranks[number]
        order, rank_of, last = rank.order, self._stages.rank_of, self._last
        while rank.position < len(order):
            one = order[rank.position]
            stage, kind = one.stage, one.kind
            need: _Event | None = None
            gives: _Event | None = None
            if kind == "forward":
                need = ("forward", stage - 1, one.micro_batch) if stage > 0 else None
                gives = ("forward", stage, one.micro_batch) if stage < last else None
            elif kind in ("backward", "input_backward"):
                need = ("backward", stage + 1, one.micro_batch) if stage < last else None
                gives = ("backward", stage, one.micro_batch) if stage > 0 else None
            elif kind == "exchange" and self._exchanges == 2:
                self._arrive(("exchange", number, None), rank.now, 0.0)
                need = ("exchange", rank_of[last if stage == 0 else 0], None)
            if need is not None:
                if need not in self._there:
                    self._waiting[need] = number
                    return
                arrived, under_way = self._there.pop(need)
                rank.wait(arrived, "pp", under_way)
            self._run(rank, one)
            if gives is not None:
                to = stage + 1 if kind == "forward" else stage - 1
                message = self._stages.message_seconds.get(stage, (0.0, 0.0))[kind != "forward"]
                under_way = 0.0 if rank_of[to] == number else message
                self._arrive(gives, rank.now + under_way, under_way)
            rank.position += 1

    def _run(self, rank: _Rank, one: OrderedPass) -> None:
        """Let a pass run now."""
        timed = self._timetable[one.stage, one.key]
        if one.kind == "wait":
            rank.wait(rank.gathered.pop(one.stage, 0.0), timed.beside_axis)
        rank.starts.append(rank.now)
        rank.ran[one.stage, one.key] += 1
        time = timed.time
        seconds = time.seconds
        beside = rank.gathering - rank.now
        if beside > 0:
            whole = seconds + time.products * self._slower
            took = whole if whole <= beside else beside + (1 - beside / whole) * seconds
            rank.slowed += took - seconds
            seconds = took
        rank.now += seconds
        rank.ends.append(rank.now)
        if timed.beside:
            rank.gathering = max(rank.gathering, rank.now) + timed.beside
            rank.gathered[one.stage] = rank.gathering

    def _arrive(self, event: _Event, when: float, under_way: float) -> None:
        """Note what another pass can begin with, and let the rank that waits for it go on."""
        self._there.setdefault(event, (when, under_way))
        if event in self._waiting:
            self._ready.append(self._waiting.pop(event))


def segments_of(
    rank: RankTime, order: Sequence[OrderedPass], timetable: Timetable
) -> list[tuple[OrderedPass, TraceSegment]]:
    """The segments of all passes of a rank, in seconds from the begin of the step."""
    found = []
    for one, start, end in zip(order, rank.starts, rank.ends, strict=True):
        time = timetable[one.stage, one.key].time
        stretched = (end - start) / time.seconds if time.seconds else 1.0
        for segment in time.segments:
            moved = segment._replace(start=start + segment.start * stretched, end=start + segment.end * stretched)
            found.append((one, moved))
    return found
