"""Stretches one after the other on the compute stream, with fully_shard's collectives on streams beside it.

This is the order of torch's FSDP2 (`FSDPParamGroup` in torch/distributed/fsdp/_fully_shard):

- Forward: the parameters of a stretch are gathered while the stretch before computes. It begins when they are there.
- Backward: when a stretch begins, the gather for the next one is called. When it ends, the reduce-scatter of its
  gradients is called, after that of the stretch before has ended: one of them is under way at a time.
- The all-reduce over replicas follows the reduce-scatter, and nothing waits for it until the pass ends.
- A pass ends when its gradients are reduced. So the first gather and the last reduce-scatter are exposed.

Where experts are sharded in a group of their own, its gathers are taken to be called with those of the layer, as
torchtitan does it. What zero = 1 and 2 leave out is not in the traffic of a stretch, so no rule is needed here.

A link runs one collective of fully_shard at a time, in the order of the calls. Collectives of tp, ep and cp run in
place, on the compute stream: those beside it wait meanwhile, if they use the same link. Where the exchange of experts
is overlapped, it runs beside the ops of its own stretch, in place of those of another micro-batch of equal work.
Products are slower while another collective runs. Within a stretch, ops and collectives in place are taken to be evenly
mixed.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Literal, NamedTuple

from counting.ranks.profile import Axis

LinkName = Literal["node_link", "network_link"]
LINK_NAMES: tuple[LinkName, ...] = ("node_link", "network_link")
_Tickets = dict[LinkName, int]  # how many collectives must have ended on a link
NO_TICKETS: _Tickets = {}
SAME = 1e-9  # relative: two layers after which the streams are this near to each other are a steady state


class OnLink(NamedTuple):
    """Collectives of one axis, and for how many seconds they occupy a link."""

    axis: Axis
    link: LinkName
    seconds: float


class TimedStretch(NamedTuple):
    """The seconds of a stretch, if nothing runs beside it, and the collectives that are called in it."""

    products: float = 0.0
    attention: float = 0.0
    memory: float = 0.0
    in_place: tuple[OnLink, ...] = ()  # of tp, ep, cp
    beside: tuple[OnLink, ...] = ()  # that run beside its ops, as they belong to another micro-batch
    gathers: tuple[OnLink, ...] = ()  # of parameters that this stretch needs
    prefetches: tuple[OnLink, ...] = ()  # of those that the next stretch needs, called when this one begins
    reductions: tuple[OnLink, ...] = ()  # reduce-scatters of its gradients
    all_reduces: tuple[OnLink, ...] = ()  # over replicas, after them

    @property
    def compute(self) -> float:
        """Seconds of all ops."""
        return self.products + self.attention + self.memory

    @property
    def collectives(self) -> tuple[OnLink, ...]:
        """All of them."""
        return self.in_place + self.beside + self.gathers + self.prefetches + self.reductions + self.all_reduces


EMPTY = TimedStretch()  # not a stretch at all: the collectives of the next one need not wait for it


class TraceSegment(NamedTuple):
    """What a row of a trace shows, in seconds from the begin of the pass; `row` is `compute` or an axis."""

    row: str
    name: str
    start: float
    end: float


class PassTime(NamedTuple):
    """The seconds of a pass, and what they are spent on; `communication` is what is exposed, by axis.

    `seconds` is the sum of all parts but for rounding. The time by which collectives slow down products is in
    `products`.
    """

    seconds: float = 0.0
    products: float = 0.0
    attention: float = 0.0
    memory: float = 0.0
    communication: tuple[tuple[Axis, float], ...] = ()
    segments: tuple[TraceSegment, ...] = ()  # if they are asked for


def lay_out_pass(
    stretches: Sequence[tuple[TimedStretch, int]],
    beside_share: float,
    names: Sequence[Sequence[str]] | None = None,
) -> PassTime:
    """The time of stretches that run one after the other, each as often in a row as its number says.

    `beside_share` is the part of their speed that products keep while a collective runs beside them. With `names`, of
    each time that each of `stretches` runs, the result has segments; without, equal layers are extended as soon as one
    leaves the streams as the one before did, so that the cost does not depend on the number of layers.
    """
    streams = _Streams(beside_share, record=names is not None)
    there = [count > 0 and stretch != EMPTY for stretch, count in stretches]
    runs = list(compress(stretches, there))
    titles = [] if names is None else list(compress(names, there))
    needed = streams.call(runs[0][0].gathers) if runs else {}
    reducing: _Tickets = {}
    for index, (stretch, count) in enumerate(runs):
        after = runs[index + 1][0].gathers if index + 1 < len(runs) else ()
        before: _State | None = None
        repeat = 0
        while repeat < count:
            state = streams.state(needed, reducing)
            if names is None and before is not None and repeat < count - 1 and state.steady_since(before):
                streams.extend(before, count - 1 - repeat)
                repeat = count - 1
                before = None
                continue
            before = state
            streams.wait(needed)
            beside = streams.call(stretch.beside)
            following = stretch.gathers if repeat < count - 1 else after
            needed = streams.call((*stretch.prefetches, *following))
            streams.compute(stretch, titles[index][repeat] if titles else "")
            streams.wait(beside)
            streams.wait(reducing)
            reducing = streams.call(stretch.reductions)
            streams.call(stretch.all_reduces, after=reducing)
            repeat += 1
    streams.wait({link: queue.called for link, queue in streams.queues.items()})
    return streams.result()


class _Job:
    """A collective beside the compute stream."""

    def __init__(self, axis: Axis, seconds: float, after: _Tickets) -> None:
        self.axis, self.left, self.after = axis, seconds, after
        self.start: float | None = None


class _Queue:
    """The collectives of fully_shard on one link: those that are not done, and how many were called and are done."""

    def __init__(self) -> None:
        self.jobs: deque[_Job] = deque()
        self.called = self.done = 0


class _State(NamedTuple):
    """Where the streams are before a stretch: totals so far, and what is under way, relative to now."""

    now: float
    products: float
    attention: float
    memory: float
    exposed: dict[Axis, float]
    pending: tuple[tuple[Axis, ...], ...]
    left: tuple[float, ...]
    tickets: tuple[int, ...]

    def steady_since(self, before: "_State") -> bool:
        """Whether the streams are as they were then."""
        if self.pending != before.pending or self.tickets != before.tickets:
            return False
        most = SAME * (self.now - before.now)
        return all(abs(one - other) <= most for one, other in zip(self.left, before.left, strict=True))


class _Streams:
    """The compute stream and the links, at one moment."""

    def __init__(self, beside_share: float, *, record: bool) -> None:
        assert 0 < beside_share <= 1, "a share"
        self._slower = 1 / beside_share - 1
        self._record = record
        self._segments: list[TraceSegment] = []
        self.now = self._products = self._attention = self._memory = 0.0
        self._exposed: dict[Axis, float] = {}
        self.queues: dict[LinkName, _Queue] = {name: _Queue() for name in LINK_NAMES}

    def call(self, collectives: Iterable[OnLink], after: _Tickets = NO_TICKETS) -> _Tickets:
        """Call collectives beside the compute stream, which begin `after` others; returns what to wait for."""
        tickets: _Tickets = {}
        for each in collectives:
            if each.seconds > 0:
                queue = self.queues[each.link]
                queue.jobs.append(_Job(each.axis, each.seconds, after))
                queue.called += 1
                tickets[each.link] = queue.called
        return tickets

    def wait(self, tickets: _Tickets) -> None:
        """Let the compute stream wait until these have ended; the time is that of the collective that runs."""
        for link, ticket in tickets.items():
            queue = self.queues[link]
            while queue.done < ticket:
                running = {name: self.queues[name].jobs[0].left for name in self._running()}
                first = min(running, key=running.__getitem__)
                waited = link if link in running else first
                self._expose(self.queues[waited].jobs[0].axis, running[first])
                self._advance(running[first], dict.fromkeys(running, 1.0), first)

    def compute(self, stretch: TimedStretch, title: str) -> None:
        """Run the ops of a stretch and its collectives in place."""
        begin = self.now
        of_links = dict.fromkeys(LINK_NAMES, 0.0)
        for each in stretch.in_place:
            of_links[each.link] += each.seconds
            self._expose(each.axis, each.seconds)
        alone = stretch.compute + sum(of_links.values())
        slower = stretch.products * self._slower
        self._products += stretch.products
        self._attention += stretch.attention
        self._memory += stretch.memory
        left = 1.0  # share of the stretch
        while left > 0 and alone > 0:
            running = self._running()
            if not running:
                self.now += left * alone
                break
            beside = alone + slower
            rates = {name: 1 - of_links[name] / beside for name in running}
            seconds, ended = left * beside, None
            for name, rate in rates.items():
                job = self.queues[name].jobs[0]
                if rate > 0 and job.left / rate < seconds:
                    seconds, ended = job.left / rate, name
            done = left if ended is None else min(seconds / beside, left)
            self._products += done * slower
            self._advance(seconds, rates, ended)
            left = 0.0 if ended is None else left - done
        if self._record:
            self._show(stretch, title, begin)

    def _running(self) -> list[LinkName]:
        """The links on which a collective runs now."""
        return [
            name
            for name, queue in self.queues.items()
            if queue.jobs and all(self.queues[link].done >= ticket for link, ticket in queue.jobs[0].after.items())
        ]

    def _expose(self, axis: Axis, seconds: float) -> None:
        if seconds > 0:
            self._exposed[axis] = self._exposed.get(axis, 0.0) + seconds

    def _advance(self, seconds: float, rates: dict[LinkName, float], ended: LinkName | None) -> None:
        """Let time pass, in which the first collective of each link runs at a rate; that of `ended` ends."""
        for name, rate in rates.items():
            queue = self.queues[name]
            job = queue.jobs[0]
            if job.start is None:
                job.start = self.now
            job.left -= seconds * rate
            if name == ended or job.left <= 0:
                queue.jobs.popleft()
                queue.done += 1
                if self._record:
                    self._segments.append(TraceSegment(job.axis, job.axis, job.start, self.now + seconds))
        self.now += seconds

    def _show(self, stretch: TimedStretch, title: str, begin: float) -> None:
        """Segments of a stretch: its ops, then its collectives in place, though they take turns in it."""
        at = max(self.now - sum(each.seconds for each in stretch.in_place), begin)
        if at > begin:
            self._segments.append(TraceSegment("compute", title, begin, at))
        for each in stretch.in_place:
            if each.seconds > 0:
                self._segments.append(TraceSegment(each.axis, title, at, at + each.seconds))
                at += each.seconds

    def state(self, *tickets: _Tickets) -> _State:
        """What is under way now."""
        queues = [self.queues[name] for name in LINK_NAMES]
        return _State(
            self.now,
            self._products,
            self._attention,
            self._memory,
            dict(self._exposed),
            tuple(tuple(job.axis for job in queue.jobs) for queue in queues),
            tuple(job.left for queue in queues for job in queue.jobs),
            tuple(max(each.get(name, 0) - self.queues[name].done, 0) for each in tickets for name in LINK_NAMES),
        )

    def extend(self, since: _State, times: int) -> None:
        """Go on as since then, so many times."""
        self.now += (self.now - since.now) * times
        self._products += (self._products - since.products) * times
        self._attention += (self._attention - since.attention) * times
        self._memory += (self._memory - since.memory) * times
        for axis, seconds in self._exposed.items():
            self._exposed[axis] = seconds + (seconds - since.exposed.get(axis, 0.0)) * times

    def result(self) -> PassTime:
        """All that has run."""
        return PassTime(
            self.now,
            self._products,
            self._attention,
            self._memory,
            tuple(sorted(self._exposed.items())),
            tuple(self._segments),
        )
