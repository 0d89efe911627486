"""Sums over the work of a step, and the recorded ops of a function, for the tests of measured work."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from counting.measurements.live_bytes import LiveBytes
from counting.measurements.meta_device import measuring
from counting.measurements.work import Recorder, summarise
from counting.ranks.profile import Traffics, total_traffic
from counting.work import Op, RankWork, StepWork, StretchWork


def ops_of(function: Callable[..., object], *inputs: Tensor) -> tuple[Op, ...]:
    """The ops of `function(*inputs)`; the inputs are there before."""
    with measuring():
        recorder = Recorder()
        with LiveBytes(inputs, recorder) as tracker, recorder.of(tracker):
            function(*inputs)
            recorder.cut()
        (stretch,) = recorder.take()
        return summarise(stretch)


def bytes_of(ops: Sequence[Op]) -> list[tuple[str, int, int]]:
    """Name, bytes read and bytes written of each op, the latter two of all its calls."""
    return [(op.name, op.calls * op.bytes_read, op.calls * op.bytes_written) for op in ops]


def stretches_of(work: StepWork, rank: RankWork) -> Iterator[tuple[StretchWork, int]]:
    """All stretches of a rank's passes, each with the number of times that it runs in a whole step."""
    shown = {each.micro_batch for each in rank.order}
    further = work.micro_batches - len(shown)
    runs: Counter[tuple[int, str]] = Counter()
    for each in rank.order:
        runs[each.stage, each.key] += 1 + (further if each.micro_batch == len(shown) // 2 else 0)
    stages = {stage.stage: stage for stage in rank.stages}
    for (number, key), times in runs.items():
        one = stages[number].passes[key]
        yield one.before, times
        yield one.after, times
        for index, count in stages[number].runs:
            yield one.layers[index], times * count


def step_flops(work: StepWork, rank: int = 0) -> int:
    """The FLOPs of a rank's passes in a whole step."""
    found = stretches_of(work, work.ranks[rank])
    return sum(op.calls * op.flops * times for stretch, times in found for op in stretch.ops)


def step_traffic_of(work: StepWork, rank: int = 0) -> Traffics:
    """The traffic of a rank's passes in a whole step."""
    return total_traffic((stretch.traffic, times) for stretch, times in stretches_of(work, work.ranks[rank]))
