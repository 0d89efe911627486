"""In which order the passes of a stage are run, so that each one that is measured finds what it should."""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from counting.measurements.ranks.pipeline.schedules import StageStates
from counting.ranks.pipeline import Found, PassKind

Key = tuple[PassKind, Found]  # the kind of a pass, and what it finds
MOST_WAITING = 2  # micro-batches between two of their passes


class Step(NamedTuple):
    """A pass that is run."""

    kind: PassKind
    micro_batch: int | None
    found: Found


class _Place(NamedTuple):
    """Where a plan has come to."""

    state: tuple[bool, bool, bool]
    begun: bool = False  # an unshard that was not waited for
    waiting: int = 0  # micro-batches between forward and backward
    halfway: int = 0  # micro-batches between the two halves of backward


class Planner:
    """Finds the shortest next way to a pass that is needed.

    `states` is a stage at its beginning. With `gathers_first`, the first forward pass gathers parameters; else they are
    gathered by passes of their own.
    """

    def __init__(self, states: StageStates, *, sharded: bool, gathers_first: bool) -> None:
        self._states, self._sharded = states, sharded
        self._own_passes = sharded and not gathers_first

    def plan(self, needed: set[Key]) -> list[Step]:
        """Steps that contain all of `needed`; the last one completes the gradients of a step."""
        place, left, steps = _Place((False, False, False)), set(needed), list[tuple[PassKind, Found]]()
        while left:
            way, place = self._way(place, left)
            steps += way
            left -= set(way)
        end: PassKind = "reduction" if self._sharded else "backward"
        if steps[-1][0] != end:
            of_end: set[Key] = {(end, found) for found in ("nothing", "parameters", "gradients", "pending", "both")}
            steps += self._way(place, of_end)[0]
        return list(_numbered(steps))

    def _way(self, start: _Place, wanted: set[Key]) -> tuple[list[Key], _Place]:
        queue: deque[tuple[_Place, list[Key]]] = deque([(start, [])])
        seen = {start}
        while queue:
            place, way = queue.popleft()
            for key, after in self._passes(place):
                if key in wanted:
                    return [*way, key], after
                if after not in seen:
                    seen.add(after)
                    queue.append((after, [*way, key]))
        raise AssertionError(f"no way to {sorted(wanted)}")

    def _passes(self, place: _Place) -> Iterator[tuple[Key, _Place]]:
        """The passes that can come next, each with the place after it."""
        for kind in self._kinds(place):
            self._states.set(place.state)
            key = (kind, self._states.found(kind))
            self._states.run(kind)
            state = self._states.state()
            begun = (place.begun or kind == "unshard") and kind != "wait"
            waiting = place.waiting + (kind == "forward") - (kind in ("backward", "input_backward"))
            halfway = place.halfway + (kind == "input_backward") - (kind == "weight_backward")
            yield key, _Place(state, begun, waiting, halfway)

    def _kinds(self, place: _Place) -> Iterator[PassKind]:
        gathered = place.state[0] or not self._own_passes
        if self._own_passes:
            if place.begun:
                yield "wait"
                return
            yield "reshard" if place.state[0] else "unshard"
        if gathered and place.waiting < MOST_WAITING:
            yield "forward"
        if gathered and place.waiting:
            yield "backward"
            if place.halfway < MOST_WAITING:
                yield "input_backward"
        if gathered and place.halfway:
            yield "weight_backward"
        complete = not place.waiting and not place.halfway and any(place.state[1:])
        if complete and (gathered or not self._sharded):
            yield "reduction"  # or the end of a step, where nothing is reduced


def _numbered(steps: list[Key]) -> Iterator[Step]:
    """The steps with micro-batches: each kind of pass takes them in turn."""
    begun, waiting, halfway = 0, deque[int](), deque[int]()
    for kind, found in steps:
        number: int | None = None
        if kind == "forward":
            number, begun = begun, begun + 1
            waiting.append(number)
        elif kind == "backward":
            number = waiting.popleft()
        elif kind == "input_backward":
            number = waiting.popleft()
            halfway.append(number)
        elif kind == "weight_backward":
            number = halfway.popleft()
        yield Step(kind, number, found)
