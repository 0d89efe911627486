"""From recorded stretches to the work of passes, and from those to that of a step without a pipeline."""

from collections.abc import Sequence

from counting.measurements.work.fused import fused_ops
from counting.measurements.work.records import RawStretch, summarise
from counting.ranks.pipeline import PassKind
from counting.ranks.profile import Traffics
from counting.setup import Execution
from counting.work import OrderedPass, PassWork, RankWork, StageWork, StepWork, StretchWork

# The micro-batches of a step's order: the first, one between that stands for all others, and the last.
MOST_MICRO_BATCHES = 3
BOTH: tuple[PassKind, PassKind] = ("forward", "backward")


def stretch_works(
    stretches: Sequence[RawStretch], traffics: Sequence[Traffics], layers: Sequence[int | None], execution: Execution
) -> list[StretchWork]:
    """The work of stretches that follow each other; `layers` are the numbers of the layers that they are of.

    Layers alone are compiled. Embedding, head and loss, whose number is None, run op by op, as in torchtitan.
    """
    found: list[StretchWork] = []
    of_compiled = fused_ops(stretches, layers)
    for stretch, traffic, layer, fused in zip(stretches, traffics, layers, of_compiled, strict=True):
        if layer is None:
            found.append(StretchWork(ops=summarise(stretch), traffic=traffic))
        else:
            ops = fused if execution == "compiled" else summarise(stretch)
            found.append(StretchWork(ops=ops, fused_ops=fused, traffic=traffic))
    return found


def passes_of_micro_batch(
    stretches: Sequence[RawStretch], traffics: Sequence[Traffics], execution: Execution
) -> tuple[PassWork, PassWork]:
    """The forward and the backward pass of a micro-batch from its stretches in the order of execution.

    These are the embedding, the layers, the loss with final norm and head in both directions, the layers in reverse,
    and the embedding again.
    """
    layers = (len(stretches) - 3) // 2
    numbers = [None, *range(layers), None, *reversed(range(layers)), None]
    embedding, *rest = stretch_works(stretches, traffics, numbers, execution)
    forward, loss, backward, end = rest[:layers], rest[layers], rest[layers + 1 : -1], rest[-1]
    return (
        PassWork(before=embedding, layers=tuple(forward)),
        PassWork(before=loss, layers=tuple(reversed(backward)), after=end, ascending=False),
    )


def step_work(
    runs: Sequence[tuple[int, int]],
    micro_batches: Sequence[tuple[str, tuple[PassWork, PassWork]]],
    number: int,
    optimizer: StretchWork,
) -> StepWork:
    """The work of a step of `number` micro-batches on one device, or on a rank without a pipeline.

    `micro_batches` are those of the order, each with its place in the step; equal places are passes that are equal.
    """
    passes = {f"{kind} {place}": work for place, both in micro_batches for kind, work in zip(BOTH, both, strict=True)}
    order = [
        OrderedPass(kind=kind, key=f"{kind} {place}", stage=0, micro_batch=index)
        for index, (place, _) in enumerate(micro_batches)
        for kind in BOTH
    ]
    stage = StageWork(stage=0, runs=tuple(runs), passes=passes)
    rank = RankWork(pipeline_rank=0, stages=(stage,), order=tuple(order), optimizer=optimizer)
    return StepWork(ranks=(rank,), micro_batches=number)
