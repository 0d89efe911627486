"""The memory of a step over time: by the parts of `StepMemory`, from allocation to allocation. Torch-free.

Time is the number of allocations and releases; seconds are not known. One layer of each kind is measured, and repeated
as often as the model has it, which is exact: equal layers allocate the same. So a step is shown whole, but for
micro-batches after the second, which repeat it.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from counting.records.tidy import Tidy
from counting.setup import Setup
from counting.step.course import Course, thinned
from counting.step.memory import CLIPPING, UPDATE, StepMemory
from counting.step.phase import PARTS, Phase, Position
from torch_models.spec import ModelSpec

MOST_MOMENTS = 600  # shown; more only where each layer's pass has its worst moment and its end


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A phase of a micro-batch, from an allocation or release to another."""

    name: str
    micro_batch: int
    first: int
    last: int


class StepTimeline(Tidy, frozen=True, kw_only=True):
    """The bytes at moments of a step, in order. Each moment in between has at most the bytes of a shown neighbour.

    `after_backward` are the worst moments of gradient clipping and of the update, whose course is not followed.
    """

    changes: tuple[int, ...]  # allocations and releases before each moment, since the start of the step
    parts: dict[str, tuple[int, ...]]  # of each part of `Phase`, the bytes at each moment
    spans: tuple[Span, ...]
    after_backward: tuple[Phase, ...]
    micro_batches: int  # of the step; those after the second repeat it
    micro_batches_shown: int
    all_moments: bool  # no moment is left out

    @property
    def totals(self) -> tuple[int, ...]:
        """The bytes at each moment."""
        return tuple(map(sum, zip(*self.parts.values(), strict=True)))

    @property
    def peak_bytes(self) -> int:
        """The most bytes at any moment: the peak of the step."""
        return max(*self.totals, *(phase.peak_bytes for phase in self.after_backward))


class _Placed(NamedTuple):
    """The course of a stretch, of equal layers or outside them."""

    name: str
    course: Course
    layers: int = 1
    logits: bool = False


def step_timeline(
    spec: ModelSpec, setup: Setup, memory: StepMemory, micro_batches: Sequence[Sequence[Course]], inputs: int
) -> StepTimeline:
    """The timeline of the step of one device whose result is `memory`.

    `micro_batches` are the courses of the first micro-batch and of a later one: of the embedding, of one layer of each
    kind, of the loss, of the layers in reverse order, and of the embedding. `inputs` are the bytes of token ids, labels
    and rotary tables.
    """
    assert setup.micro_batches is not None, "a resolved setup"
    stay = setup.precision_recipe.gradients_apart or setup.zero_gradients == "in_place"
    position = Position(memory.states, buffers=memory.buffers, inputs=inputs, gradients_stay=stay)
    in_order = [list(_placed(spec, courses, mtp=bool(setup.mtp))) for courses in micro_batches]
    most = max(1, MOST_MOMENTS // sum(placed.layers for of_one in in_order for placed in of_one))
    changes, moments, spans, every = 0, list[tuple[int, Phase]](), list[Span](), True
    for index, of_one in enumerate(in_order):
        for name, course, layers, logits in of_one:
            shown, first, end = thinned(course, most), changes, course[-1]
            every = every and len(shown) == len(course)
            for _ in range(layers):
                moments += [(changes + at, position.moment(so_far, name, logits=logits)) for at, so_far in shown]
                position.pass_through(end.so_far, name)
                changes += end.changes
            spans.append(Span(name=name, micro_batch=index, first=first, last=changes))
    return StepTimeline(
        changes=tuple(at for at, _ in moments),
        parts={part: tuple(getattr(phase, part) for _, phase in moments) for part in PARTS},
        spans=tuple(_joined(spans)),
        after_backward=tuple(phase for phase in memory.phases if phase.name in (CLIPPING, UPDATE)),
        micro_batches=setup.micro_batches,
        micro_batches_shown=len(micro_batches),
        all_moments=every,
    )


def _placed(spec: ModelSpec, courses: Sequence[Course], *, mtp: bool) -> Iterator[_Placed]:
    """The courses of a micro-batch in the order of execution, those of layers for each run of equal ones."""
    kinds = {layer: index for index, (layer, _) in enumerate(spec.layer_groups())}
    embedding, forward, loss = courses[0], courses[1 : len(kinds) + 1], courses[len(kinds) + 1]
    backward, embedding_backward = courses[len(kinds) + 2 : -1][::-1], courses[-1]
    yield _Placed("forward", embedding)
    for run in spec.layer_runs:
        yield _Placed("forward", forward[kinds[run.layer]], run.count)
    yield _Placed("head, loss and MTP" if mtp else "head and loss", loss, logits=True)
    for run in reversed(spec.layer_runs):
        yield _Placed("backward", backward[kinds[run.layer]], run.count)
    yield _Placed("backward", embedding_backward)


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Neighbours of the same name and micro-batch as one."""
    found: list[Span] = []
    for span in spans:
        if found and (found[-1].name, found[-1].micro_batch) == (span.name, span.micro_batch):
            found[-1] = msgspec.structs.replace(found[-1], last=span.last)
        else:
            found.append(span)
    return found
