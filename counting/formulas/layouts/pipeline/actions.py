"""The actions of a rank of a pipeline: its passes in order, what each finds, and the messages that are alive."""

from collections import Counter
from collections.abc import Iterator, Sequence

from counting.formulas.layouts.formats import formats
from counting.formulas.layouts.pipeline.messages import Messages
from counting.formulas.layouts.pipeline.order import Pass, passes_in_order
from counting.ranks.pipeline import Found, PassKind, PipelineAction
from counting.setup import Setup
from torch_models.layout import SEVERAL_STAGES, Layout

MAKE_GRADIENTS: tuple[PassKind, ...] = ("backward", "weight_backward")
CHANGE_GRADIENTS: tuple[PassKind, ...] = (*MAKE_GRADIENTS, "input_backward", "reduction")
STAGES_GATHERED = 3  # of a rank, at a time: those that the next passes need


def actions_of(messages: Messages, setup: Setup, micro_batches: int, more: int) -> tuple[PipelineAction, ...]:
    """Return the actions of `micro_batches` micro-batches; a step of `more` of them more shows what each adds."""
    layout, rank = messages.layout, messages.pipeline_rank
    passes = passes_in_order(layout, rank, micro_batches)
    alive = messages.alive(passes)
    further = _further(messages, passes, alive, micro_batches, more)
    found = [
        PipelineAction(
            kind=kind,
            stage=stage,
            found=found,
            micro_batch=None if number is None else passes[number].micro_batch,
            messages=alive[place],
            further=further[place],
        )
        for kind, stage, found, number, place in _with_fully_shard(layout, setup, passes)
    ]
    copies = copies_of_embedding(layout, rank) if setup.mtp else ()
    if len(copies) == 1:  # else both are on this rank
        losses = messages.losses()
        after, further_after = messages_after(messages, micro_batches, more)
        found.append(
            PipelineAction(
                kind="exchange",
                stage=copies[0],
                found="nothing",
                micro_batch=None,
                messages=after + losses * micro_batches,
                further=further_after + (losses if more else 0),
            )
        )
    return tuple(found)


def copies_of_embedding(layout: Layout, pipeline_rank: int) -> tuple[int, ...]:
    """Return the stages of a rank that have an embedding where the last one predicts further tokens."""
    return tuple(stage for stage in layout.stages_of_rank(pipeline_rank) if stage in (0, layout.stages - 1))


# Kind, stage, what it finds; the place among the passes if it is one, and the place of the next pass.
_Action = tuple[PassKind, int, Found, int | None, int]


class StageFinds:
    """What a stage has between two passes: parameters that fully_shard has gathered, and gradients.

    With `converts`, whole gradients are kept in another format than they are computed in; W leaves them as they are.
    With `let_go`, none are kept: they are added to a buffer that is there all the time.
    """

    def __init__(self, number: int, *, sharded: bool, converts: bool, let_go: bool) -> None:
        self.is_first, self.sharded, self.converts, self.let_go = number == 0, sharded, converts, let_go
        self.gathered = self.kept = self.pending = False

    def found(self, kind: PassKind) -> Found:
        """What a pass of this kind finds; gradients only where it may change them."""
        if kind in CHANGE_GRADIENTS and self.pending:
            return "both" if self.kept else "pending"
        if kind in CHANGE_GRADIENTS and self.kept:
            return "gradients"
        return "parameters" if self.gathered else "nothing"

    def after(self, kind: PassKind) -> None:
        """Go on to what there is after such a pass."""
        match kind:
            case "forward" | "wait":
                self.gathered = self.sharded
            case "reduction":
                self.gathered = self.kept = self.pending = False
            case "reshard":
                self.gathered = False
            case "weight_backward" if self.converts and not self.is_first:
                self.pending = True
            case "backward" | "weight_backward":
                self.kept, self.pending = not self.let_go, False
            case "input_backward" if self.pending:
                self.kept, self.pending = True, False


def _with_fully_shard(layout: Layout, setup: Setup, passes: Sequence[Pass]) -> Iterator[_Action]:
    """The passes, and those of fully_shard alone where it is applied.

    With one stage on a rank the first forward pass gathers, and the gradients are reduced after all passes. With
    several they are reduced after the last pass of the stage.
    """
    sharded, several = layout.is_sharded, layout.schedule in SEVERAL_STAGES
    converts = sharded and formats(setup).converts_gradients
    let_go = not sharded and setup.precision_recipe.gradients_apart
    finds = {
        number: StageFinds(number, sharded=sharded, converts=converts, let_go=let_go)
        for number in dict.fromkeys(each.stage for each in passes)
    }
    left = Counter(each.stage for each in passes if each.kind in MAKE_GRADIENTS)
    gathering: list[int] = []  # stages that have their parameters, or wait for them
    for place, (kind, stage, _) in enumerate(passes):
        if sharded and several:
            yield from _gathering(passes[place:], place, finds, gathering)
        yield kind, stage, finds[stage].found(kind), place, place
        finds[stage].after(kind)
        if kind in MAKE_GRADIENTS:
            left[stage] -= 1
            if sharded and not left[stage]:
                yield "reduction", stage, finds[stage].found("reduction"), None, place + 1
                finds[stage].after("reduction")


def _gathering(
    passes: Sequence[Pass], place: int, finds: dict[int, StageFinds], gathering: list[int]
) -> Iterator[_Action]:
    """Of the stages of a rank those that the next passes need are gathered, and the others freed."""
    coming = list(dict.fromkeys(each.stage for each in passes))[:STAGES_GATHERED]
    for stage in sorted(gathering):
        if stage not in coming:
            gathering.remove(stage)
            if finds[stage].gathered:
                yield "reshard", stage, finds[stage].found("reshard"), None, place
                finds[stage].after("reshard")
    for stage in coming:
        if stage not in gathering:
            gathering.append(stage)
            yield "unshard", stage, finds[stage].found("unshard"), None, place
    stage = passes[0].stage
    if not finds[stage].gathered:
        yield "wait", stage, finds[stage].found("wait"), None, place
        finds[stage].after("wait")


def messages_after(messages: Messages, micro_batches: int, more: int) -> tuple[int, int]:
    """Return the bytes of messages that are alive when the optimiser runs, and what one more micro-batch adds."""
    layout, rank = messages.layout, messages.pipeline_rank
    found = messages.after(passes_in_order(layout, rank, micro_batches))
    if not more:
        return found, 0
    return found, (messages.after(passes_in_order(layout, rank, micro_batches + more)) - found) // more


def _further(
    messages: Messages, passes: Sequence[Pass], alive: Sequence[int], micro_batches: int, more: int
) -> list[int]:
    """What one more micro-batch adds to the messages before each pass, and after the last.

    The step with a round more, of `more` micro-batches, begins as this one and, after the round, ends as it, with later
    micro-batches. The last steady round that both have stands after the additional one, where more messages are alive.
    """
    if not more:
        return [0] * len(alive)
    longer = passes_in_order(messages.layout, messages.pipeline_rank, micro_batches + more)
    alive_longer = messages.alive(longer)
    added = len(longer) - len(passes)
    begin_alike = next((place for place, each in enumerate(passes) if each != longer[place]), len(passes))

    def further(place: int) -> int:
        there = place + (added if place >= begin_alike - added else 0)
        each, rest = divmod(alive_longer[there] - alive[place], more)
        assert not rest, "a round adds equally much for each of its micro-batches"
        return each

    return [further(place) for place in range(len(alive))]
