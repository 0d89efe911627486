"""The actions of a rank of a pipeline: its passes in order, what each finds, and the messages that are alive."""

from collections import Counter
from collections.abc import Iterator, Sequence

from counting.formulas.layouts.pipeline.messages import Messages
from counting.formulas.layouts.pipeline.order import Pass, passes_in_order
from counting.ranks.pipeline import Found, PassKind, PipelineAction
from torch_models.layout import SEVERAL_STAGES, Layout
from torch_models.stages import micro_batches_of_round

MAKE_GRADIENTS: tuple[PassKind, ...] = ("backward", "weight_backward")
STAGES_GATHERED = 3  # of a rank, at a time: those that the next passes need


def actions_of(messages: Messages, micro_batches: int) -> tuple[PipelineAction, ...]:
    """Return the actions of `micro_batches` micro-batches."""
    layout, rank = messages.layout, messages.pipeline_rank
    passes = passes_in_order(layout, rank, micro_batches)
    alive = messages.alive(passes)
    further = _further(messages, passes, alive, micro_batches)
    return tuple(
        PipelineAction(
            kind=kind,
            stage=stage,
            found=found,
            micro_batch=None if number is None else passes[number].micro_batch,
            messages=alive[place],
            further=further[place],
        )
        for kind, stage, found, number, place in _with_fully_shard(layout, passes)
    )


# Kind, stage, what it finds; the place among the passes if it is one, and the place of the next pass.
_Action = tuple[PassKind, int, Found, int | None, int]


def _with_fully_shard(layout: Layout, passes: Sequence[Pass]) -> Iterator[_Action]:
    """The passes, and those of fully_shard alone where it is applied.

    With one stage on a rank the first forward pass gathers, and the gradients are reduced after all passes. With
    several they are reduced after the last pass of the stage.
    """
    sharded, several = layout.is_sharded, layout.schedule in SEVERAL_STAGES
    left = Counter(each.stage for each in passes if each.kind in MAKE_GRADIENTS)
    found: dict[int, Found] = {}
    for place, (kind, stage, _) in enumerate(passes):
        if sharded and several:
            yield from _gathering(passes[place:], place, found)
        yield kind, stage, found.get(stage, "nothing"), place, place
        if kind in MAKE_GRADIENTS:
            found[stage] = "gradients"
            left[stage] -= 1
            if sharded and not left[stage]:
                yield "reduction", stage, "gradients", None, place + 1
        elif sharded and stage not in found:
            found[stage] = "parameters"


def _gathering(passes: Sequence[Pass], place: int, found: dict[int, Found]) -> Iterator[_Action]:
    """The stages that the next passes need are gathered; the one of the next pass is waited for."""
    coming = list(dict.fromkeys(each.stage for each in passes))[:STAGES_GATHERED]
    for stage in coming:
        if stage not in found:
            yield "unshard", stage, "nothing", None, place
            found[stage] = "nothing"
    if found[passes[0].stage] == "nothing":
        yield "wait", passes[0].stage, "nothing", None, place
        found[passes[0].stage] = "parameters"


def messages_after(messages: Messages, micro_batches: int) -> tuple[int, int]:
    """Return the bytes of messages that are alive when the optimiser runs, and what one more micro-batch adds."""
    layout = messages.layout
    more = _one_more(layout, micro_batches)
    few, many = (
        messages.after(passes_in_order(layout, messages.pipeline_rank, number))
        for number in (micro_batches, micro_batches + more)
    )
    return few, (many - few) // more


def _one_more(layout: Layout, micro_batches: int) -> int:
    """The micro-batches by which a step of the same order can be longer."""
    return micro_batches_of_round(layout.pp, micro_batches) if layout.schedule in ("interleaved", "zb") else 1


def _further(messages: Messages, passes: Sequence[Pass], alive: Sequence[int], micro_batches: int) -> list[int]:
    """What one more micro-batch adds to the messages before each pass, and after the last.

    The step with a round more has the same passes at its end as this one, of later micro-batches, and before them the
    same at its beginning.
    """
    layout = messages.layout
    more = _one_more(layout, micro_batches)
    longer = passes_in_order(layout, messages.pipeline_rank, micro_batches + more)
    alive_longer = messages.alive(longer)
    added = len(longer) - len(passes)
    alike = 0
    while alike < len(passes) and longer[-1 - alike][:2] == passes[-1 - alike][:2]:
        alike += 1
    first = len(passes) - alike
    return [
        (alive_longer[place + added if place >= first else place] - alive[place]) // more
        for place in range(len(passes) + 1)
    ]
