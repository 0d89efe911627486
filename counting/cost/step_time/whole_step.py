"""All passes and the update of a step, laid out in time on one machine: where the time goes, on each rank of pp."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from counting.cost.step_time.collectives import LeastBytes, LinkField, least_seconds
from counting.cost.step_time.pipeline import RankTime, Stages, TimedPass, lay_out_ranks
from counting.cost.step_time.streams import PassTime, TimedStretch, lay_out_pass
from counting.cost.step_time.stretches import StretchTimer
from counting.ranks.profile import Axis, collective_of
from counting.step.time import TimeBreakdown
from counting.work import OrderedPass, PassWork, RankWork, StageWork, StepWork

ROUNDING = 1e-9  # relative: what is left of a step that has no bubble
AND = " + "  # between the keys of two passes that are one chain

_Place = Literal["pass", "beside"]
_Traffic = dict[tuple[_Place, LinkField], LeastBytes]


class RankStep(NamedTuple):
    """What a rank does in a step, in seconds; the bubble is all that is left of the step."""

    order: tuple[OrderedPass, ...]  # without a pipeline, forward and backward of a micro-batch are one
    passes: RankTime
    update: PassTime
    update_begin: float  # without the micro-batches that the order leaves out
    further: float  # of micro-batches that the order leaves out
    breakdown: TimeBreakdown  # of its own, its bubble up to the end of the step


class WholeStep(NamedTuple):
    """A step on one machine."""

    seconds: float
    ranks: tuple[RankStep, ...]
    timetable: dict[tuple[int, str], TimedPass]

    @property
    def busiest(self) -> RankStep:
        """The rank with the most work."""
        return max(self.ranks, key=lambda rank: rank.breakdown.total - rank.breakdown.bubble)


def lay_out_step(work: StepWork, timer: StretchTimer, *, names: bool = False) -> WholeStep:
    """The step as the estimate has it; with `names` the passes have segments.

    Where the order has fewer micro-batches than the step, each further one takes as long as the one in the middle of
    the order takes the rank that is longest in it. Where gradients are clipped, stages of a pipeline add up their
    norms, so that no update begins before all passes have ended.
    """
    share = timer.machine.beside_collectives_share
    titles = _Titles(work) if names else None
    timetable: dict[tuple[int, str], TimedPass] = {}
    orders = [chained(rank.order, pipeline=len(work.ranks) > 1) for rank in work.ranks]
    for rank, order in zip(work.ranks, orders, strict=True):
        stages = {stage.stage: stage for stage in rank.stages}
        for one in order:
            if (one.stage, one.key) not in timetable:
                timetable[one.stage, one.key] = _timed_pass(stages[one.stage], one, timer, share, titles)
    passes = lay_out_ranks(orders, timetable, _stages(work, timer), share)
    updates = [
        lay_out_pass([(timer.stretch(rank.optimizer), 1)], share, [["optimizer"]] if names else None)
        for rank in work.ranks
    ]
    number, further = _further(work, orders[0])
    added = [_middle(order, timetable, number) if further else PassTime() for order in orders]
    longest = max(each.seconds for each in added) * further
    begins = [one.end for one in passes]
    if any(_sums_over_stages(rank) for rank in work.ranks):
        begins = [max(begins)] * len(begins)
    end = max(begin + update.seconds for begin, update in zip(begins, updates, strict=True)) + longest
    ranks = tuple(
        RankStep(order, one, update, begin, longest, _breakdown(one, update, more, further, end))
        for order, one, update, begin, more in zip(orders, passes, updates, begins, added, strict=True)
    )
    return WholeStep(end, ranks, timetable)


def _sums_over_stages(rank: RankWork) -> bool:
    """Whether the update begins with a sum over the ranks of pp."""
    return any(collective_of(key).axis == "pp" for key in rank.optimizer.traffic)


def bound_of_step(work: StepWork, timer: StretchTimer) -> float:
    """The seconds that no run of this step beats; `timer` is that of the bound.

    All collectives are hidden: the longest of three. The passes in their order by their ops alone, from the first pass
    of the first stage to the end of its rank's update, if the order has all micro-batches; the ops of the rank with
    most of them; and what a rank's links must carry in each direction, of groups within nodes and of those across.
    """
    timetable: dict[tuple[int, str], TimedPass] = {}
    traffic: dict[tuple[int, str], _Traffic] = {}
    orders = [chained(rank.order, pipeline=len(work.ranks) > 1) for rank in work.ranks]
    for rank, order in zip(work.ranks, orders, strict=True):
        stages = {stage.stage: stage for stage in rank.stages}
        for one in order:
            if (one.stage, one.key) not in timetable:
                stretches = _stretches(stages[one.stage], one, timer)
                seconds = sum(stretch.compute * count for stretch, count in stretches)
                timetable[one.stage, one.key] = TimedPass(PassTime(seconds=seconds, products=seconds))
                traffic[one.stage, one.key] = _least_traffic(stages[one.stage], one, timer)
    stages_without_messages = _stages(work, timer)._replace(message_seconds={})
    passes = lay_out_ranks(orders, timetable, stages_without_messages, 1.0)
    updates = [timer.stretch(rank.optimizer) for rank in work.ranks]
    number, further = _further(work, orders[0])
    added = [_middle(order, timetable, number).seconds if further else 0.0 for order in orders]
    # What further micro-batches add to the first rank's end is not known exactly: the other two are enough then.
    longest = [] if further else [passes[0].end + updates[0].compute]
    for rank, order, of_rank, update, more in zip(work.ranks, orders, passes, updates, added, strict=True):
        longest.append(of_rank.busy + update.compute + more * further)
        total: _Traffic = {("pass", link): moved for link, moved in timer.least_traffic(rank.optimizer).items()}
        for place, times in _counts(order, number, further).items():
            for key, moved in traffic[place].items():
                total[key] = total.get(key, LeastBytes()).plus(moved, times)
        longest += [least_seconds(moved, link, timer.machine) for (_, link), moved in total.items()]
    return max(longest)


def _least_traffic(stage: StageWork, one: OrderedPass, timer: StretchTimer) -> _Traffic:
    """What a pass must move, by the slowest link of the groups; gathers that run beside other passes are apart.

    Each part alone is a bound, and no longer than in the estimate, where all parts may be under way at once.
    """
    place: _Place = "beside" if one.kind == "unshard" else "pass"
    found: _Traffic = {}
    for key in one.key.split(AND):
        work = stage.passes[key]
        layers = [(work.layers[index], count) for index, count in stage.runs]
        for stretch, count in [(work.before, 1), *layers, (work.after, 1)]:
            for link, moved in timer.least_traffic(stretch, exchanges=one.kind == "exchange").items():
                found[place, link] = found.get((place, link), LeastBytes()).plus(moved, count)
    return found


def chained(order: Sequence[OrderedPass], *, pipeline: bool) -> tuple[OrderedPass, ...]:
    """The order, in which without a pipeline a forward pass and the backward pass that follows it are one."""
    if pipeline:
        return tuple(order)
    assert len(order) % 2 == 0, "a forward and a backward pass of each micro-batch"
    found = []
    for forward, backward in zip(order[::2], order[1::2], strict=True):
        assert (forward.kind, backward.kind) == ("forward", "backward"), "in turn"
        assert forward.micro_batch == backward.micro_batch, "of one micro-batch"
        key = f"{forward.key}{AND}{backward.key}"
        found.append(OrderedPass(kind="forward", key=key, stage=forward.stage, micro_batch=forward.micro_batch))
    return tuple(found)


def _stretches(stage: StageWork, one: OrderedPass, timer: StretchTimer) -> list[tuple[TimedStretch, int]]:
    return [
        stretch
        for key in one.key.split(AND)
        for stretch in timer.passes(stage, stage.passes[key], exchanges=one.kind == "exchange")
    ]


def _timed_pass(
    stage: StageWork, one: OrderedPass, timer: StretchTimer, share: float, titles: "_Titles | None"
) -> TimedPass:
    stretches = _stretches(stage, one, timer)
    names = None if titles is None else [name for key in one.key.split(AND) for name in titles.of(stage, key)]
    if one.kind != "unshard":
        return TimedPass(lay_out_pass(stretches, share, names))
    alone = [(_without_collectives(stretch), count) for stretch, count in stretches]
    called = [(each, count) for stretch, count in stretches for each in stretch.collectives]
    beside = sum(each.seconds * count for each, count in called)
    axes = [each.axis for each, _ in called]
    return TimedPass(lay_out_pass(alone, share, names), beside, axes[0] if axes else "fsdp")


def _without_collectives(stretch: TimedStretch) -> TimedStretch:
    return TimedStretch(products=stretch.products, attention=stretch.attention, memory=stretch.memory)


def _stages(work: StepWork, timer: StretchTimer) -> Stages:
    rank_of = {stage.stage: number for number, rank in enumerate(work.ranks) for stage in rank.stages}
    assert [rank.pipeline_rank for rank in work.ranks] == list(range(len(work.ranks))), "all ranks of pp, in order"
    messages = {
        stage.stage: (timer.message(stage.message_bytes[0]), timer.message(stage.message_bytes[1]))
        for rank in work.ranks
        for stage in rank.stages
    }
    return Stages(rank_of, messages)


def _further(work: StepWork, order: Sequence[OrderedPass]) -> tuple[int, int]:
    """The micro-batches in the order, and those that it leaves out."""
    number = len({one.micro_batch for one in order if one.micro_batch is not None})
    assert 0 < number <= work.micro_batches, "at most all micro-batches of the step"
    return number, work.micro_batches - number


def _of_middle(order: Sequence[OrderedPass], number: int) -> Iterator[OrderedPass]:
    return (one for one in order if one.micro_batch == number // 2)


def _middle(order: Sequence[OrderedPass], timetable: dict[tuple[int, str], TimedPass], number: int) -> PassTime:
    """The passes of the micro-batch in the middle, together."""
    times = [timetable[one.stage, one.key].time for one in _of_middle(order, number)]
    exposed: dict[Axis, float] = defaultdict(float)
    for time in times:
        for axis, seconds in time.communication:
            exposed[axis] += seconds
    return PassTime(
        sum(time.seconds for time in times),
        sum(time.products for time in times),
        sum(time.attention for time in times),
        sum(time.memory for time in times),
        tuple(exposed.items()),
    )


def _counts(order: Sequence[OrderedPass], number: int, further: int) -> Counter[tuple[int, str]]:
    counts = Counter((one.stage, one.key) for one in order)
    for one in _of_middle(order, number):
        counts[one.stage, one.key] += further
    return counts


def _breakdown(passes: RankTime, update: PassTime, added: PassTime, further: int, end: float) -> TimeBreakdown:
    """Where the time of a rank goes in a step that ends at `end`. Without a pipeline there is no bubble."""
    communication = {str(axis): seconds for axis, seconds in passes.communication.items()}
    for of_axes, times in ((added.communication, further), (update.communication, 1)):
        for axis, seconds in of_axes:
            communication[axis] = communication.get(axis, 0.0) + seconds * times
    products, attention, memory = (
        passes.products + added.products * further,
        passes.attention + added.attention * further,
        passes.memory + added.memory * further,
    )
    optimizer = update.products + update.attention + update.memory
    busy = products + attention + memory + optimizer + sum(communication.values())
    bubble = end - busy
    return TimeBreakdown(
        products=products,
        attention=attention,
        memory_bound=memory,
        communication=communication,
        bubble=bubble if bubble > ROUNDING * end else 0.0,
        optimizer=optimizer,
    )


class _Titles:
    """What a trace calls each stretch of a pass."""

    def __init__(self, work: StepWork) -> None:
        stages = sorted((stage for rank in work.ranks for stage in rank.stages), key=lambda stage: stage.stage)
        self._first: dict[int, int] = {}
        layers = 0
        for stage in stages:
            self._first[stage.stage] = layers
            layers += sum(count for _, count in stage.runs)
        self._last = stages[-1].stage

    def of(self, stage: StageWork, key: str) -> list[list[str]]:
        """Of each run of stretches, the name of each stretch in it."""
        one: PassWork = stage.passes[key]
        kind = key.split()[0].replace("_", " ")
        first = self._first[stage.stage]
        runs = []
        for _, count in stage.runs:
            runs.append([f"{kind}, layer {layer}" for layer in range(first, first + count)])
            first += count
        low, high = f"{kind}, embedding", f"{kind}, norm, head and loss"
        low, high = (low if stage.stage == 0 else kind), (high if stage.stage == self._last else kind)
        if one.ascending:
            return [[low], *runs, [high]]
        return [[high], *(run[::-1] for run in reversed(runs)), [low]]
