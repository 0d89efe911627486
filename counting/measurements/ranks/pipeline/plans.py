"""In which order the passes of a stage are run, so that each one that is measured finds what it should."""

from collections import deque
from collections.abc import Collection, Iterator
from typing import NamedTuple

from counting.measurements.ranks.pipeline.schedules import StageStates
from counting.ranks.pipeline import Found, PassKind

Key = tuple[PassKind, Found]  # the kind of a pass, and what it finds
MOST_WAITING = 4  # micro-batches between two of their passes


class PlannedPass(NamedTuple):
    """A pass that is run; or, with `made`, the gradients that a `weight_backward` leaves are made without it."""

    kind: PassKind
    micro_batch: int | None
    found: Found
    made: bool = False


def alike(key: Key, *, sharded: bool, converts: bool) -> Key:
    """The pass that does the same as this one.

    The gradients of a stage's input are computed without regard to those of parameters, but for those that fully_shard
    has to convert first. Where it `converts`, a `weight_backward` leaves its gradients beside those that are converted.
    """
    kind, found = key
    nothing: Found = "parameters" if sharded else "nothing"
    if kind == "input_backward" and found == "gradients":
        return kind, nothing
    if kind == "weight_backward" and converts and found in ("gradients", "both"):
        return kind, "pending" if found == "both" else nothing
    return key


def plan_of_kinds(states: StageStates, kinds: Collection[PassKind]) -> list[PlannedPass]:
    """A short plan with each of `kinds`; of passes that add gradients the first one, and one that finds gradients.

    `states` is a stage at its beginning.
    """
    halves: tuple[PassKind, ...] = ("forward", "input_backward", "weight_backward")
    whole: tuple[PassKind, ...] = ("forward", "backward")
    batches = [whole, whole, *([halves] if "input_backward" in kinds else [])] if "backward" in kinds else [halves] * 2
    order: list[tuple[PassKind, int | None]] = [("unshard", None), ("wait", None)]
    order += [(kind, index) for index, passes in enumerate(batches) for kind in passes]
    order += [("reshard", None), ("reduction", None), ("exchange", None)]
    steps: list[PlannedPass] = []
    for kind, micro_batch in order:
        if kind in kinds:
            steps.append(PlannedPass(kind, micro_batch, states.found(kind)))
            states.run(kind)
    return steps


class _Place(NamedTuple):
    """Where a plan has come to."""

    state: tuple[bool, bool, bool]
    begun: bool = False  # an unshard that was not waited for
    waiting: int = 0  # micro-batches between forward and backward
    halfway: int = 0  # micro-batches between the two halves of backward


class Planner:
    """Finds the shortest next way to a pass that is needed.

    `states` is a stage at its beginning. With `gathers_first`, the first forward pass gathers parameters; else they are
    gathered by passes of their own. With `makes_gradients`, those that a `weight_backward` leaves for fully_shard to
    convert are made, where the pass itself is not needed: it takes longer.
    """

    def __init__(self, states: StageStates, *, sharded: bool, makes_gradients: bool, gathers_first: bool) -> None:
        self._states, self._sharded, self._makes_gradients = states, sharded, makes_gradients
        self._own_passes = sharded and not gathers_first

    def plan(self, needed: set[Key]) -> list[PlannedPass]:
        """Steps that contain all of `needed`; the last one completes the gradients of a step."""
        place, left, steps = _Place((False, False, False)), set(needed), list[_Taken]()
        while left:
            way, place = self._way(place, left)
            steps += way
            left -= {taken.key for taken in way if not taken.made}
        end: PassKind = "reduction" if self._sharded else "backward"
        if steps[-1].key[0] != end:
            of_end: set[Key] = {(end, found) for found in ("nothing", "parameters", "gradients", "pending", "both")}
            steps += self._way(place, of_end)[0]
        return list(_numbered(steps))

    def _way(self, start: _Place, wanted: set[Key]) -> tuple[list["_Taken"], _Place]:
        queue: deque[tuple[_Place, list[_Taken]]] = deque([(start, [])])
        seen = {start}
        while queue:
            place, way = queue.popleft()
            for taken, after in self._passes(place):
                is_wanted = taken.key in wanted and not taken.made
                if is_wanted:
                    return [*way, taken], after
                is_replaced = self._makes_gradients and taken.key[0] == "weight_backward" and not taken.made
                if after not in seen and not is_replaced:
                    seen.add(after)
                    queue.append((after, [*way, taken]))
        raise AssertionError(f"no way to {sorted(wanted)}")

    def _passes(self, place: _Place) -> Iterator[tuple["_Taken", _Place]]:
        """The passes that can come next, each with the place after it."""
        for kind, made in self._kinds(place):
            self._states.set(place.state)
            key = (kind, self._states.found(kind))
            self._states.run(kind)
            state = self._states.state()
            begun = (place.begun or kind == "unshard") and kind != "wait"
            waiting = place.waiting + (kind == "forward") - (kind in ("backward", "input_backward"))
            halfway = place.halfway + (kind == "input_backward") - (kind == "weight_backward" and not made)
            yield _Taken(key, made), _Place(state, begun, waiting, halfway)

    def _kinds(self, place: _Place) -> Iterator[tuple[PassKind, bool]]:
        gathered = place.state[0] or not self._own_passes
        if self._own_passes:
            if place.begun:
                yield "wait", False
                return
            yield "reshard" if place.state[0] else "unshard", False
        if gathered and place.waiting < MOST_WAITING:
            yield "forward", False
        if gathered and place.waiting:
            yield "backward", False
            if place.halfway < MOST_WAITING:
                yield "input_backward", False
        if gathered and place.halfway:
            yield "weight_backward", False
        if place.state[0] and self._makes_gradients:
            yield "weight_backward", True
        if any(place.state[1:]) and (gathered or not self._sharded):
            yield "reduction", False  # or the end of a step, where nothing is reduced


class _Taken(NamedTuple):
    key: Key
    made: bool


def _numbered(steps: list[_Taken]) -> Iterator[PlannedPass]:
    """The steps with micro-batches: each kind of pass takes them in turn."""
    begun, waiting, halfway = 0, deque[int](), deque[int]()
    for (kind, found), made in steps:
        number: int | None = None
        if made:
            pass
        elif kind == "forward":
            number, begun = begun, begun + 1
            waiting.append(number)
        elif kind == "backward":
            number = waiting.popleft()
        elif kind == "input_backward":
            number = waiting.popleft()
            halfway.append(number)
        elif kind == "weight_backward":
            number = halfway.popleft()
        yield PlannedPass(kind, number, found, made)
