"""From recorded stretches to the work of passes, and from those to that of a step without a pipeline."""

from collections.abc import Sequence

from counting.measurements.work.fused import OUTSIDE, summarise_compiled
from counting.measurements.work.records import RawStretch, summarise
from counting.ranks.pipeline import PassKind
from counting.ranks.profile import Traffics
from counting.setup import Execution
from counting.work import OrderedPass, PassWork, RankWork, StageWork, StepWork, StretchWork

# The micro-batches of a step's order: the first, one between that stands for all others, and the last.
MICRO_BATCHES_SHOWN = 3
BOTH: tuple[PassKind, PassKind] = ("forward", "backward")


def works_of(
    stretches: Sequence[RawStretch],
    traffics: Sequence[Traffics],
    layers: Sequence[int | None],
    execution: Execution,
) -> list[StretchWork]:
    """The work of all recorded stretches, in the order of execution; `layers` are the numbers of decoder layers.

    Those alone are compiled where the execution is. Embedding, head and loss, whose number is None, run op by op then,
    as in torchtitan; but a run may compile them too, by themselves.
    """
    found = []
    fused = summarise_compiled(stretches, [OUTSIDE if layer is None else layer for layer in layers])
    for stretch, traffic, layer, of_compiled in zip(stretches, traffics, layers, fused, strict=True):
        run = of_compiled if execution == "compiled" and layer is not None else summarise(stretch)
        found.append(StretchWork(ops=run, fused_ops=of_compiled, traffic=traffic))
    return found


def layers_of_micro_batch(layers: int) -> list[int | None]:
    """The layer of each stretch of a micro-batch, in the order of execution.

    The stretches are the embedding, the layers, the loss with final norm and head in both directions, the layers in
    reverse, and the embedding again.
    """
    return [None, *range(layers), None, *reversed(range(layers)), None]


def passes_of_micro_batch(works: Sequence[StretchWork]) -> tuple[PassWork, PassWork]:
    """The forward and the backward pass of a micro-batch; its stretches are as in `layers_of_micro_batch`."""
    layers = (len(works) - 3) // 2
    embedding, *rest = works
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
