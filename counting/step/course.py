"""What happens within a stretch of the step, allocation by allocation. Torch-free."""

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import NamedTuple

from counting.step.profile import Alive, Stretch


class Change(NamedTuple):
    """A storage is allocated, released or resized: it has so many bytes from now on, 0 once it is released."""

    serial: int
    bytes: int


class Instant(NamedTuple):
    """A moment of a stretch, after so many of its changes: the stretch as it would be if it ended there at its peak."""

    changes: int
    so_far: Stretch


Course = Sequence[Instant]  # of one stretch; the last one is its end


class OfKind(NamedTuple):
    """The serial numbers of storages that are counted apart, as in `Stretch`; on one device, gradients alone."""

    gradients: Collection[int]
    gathered: Collection[int] = frozenset()
    communication: Collection[int] = frozenset()


def course_of(before: Alive, changes: Sequence[Change], kinds: OfKind) -> list[Instant]:
    """The state after each of the `changes` of a stretch, at whose start the storages `before` are alive.

    Two changes in a row may belong to one operation: the state between them is one that no cut would find.
    """
    sizes = dict(before)
    total = released = 0
    of_kind = [0, 0, 0]
    found = [Instant(0, Stretch(peak=0, net=0))]
    for number, (serial, size) in enumerate(changes, start=1):
        change = size - sizes.get(serial, 0)
        kind = next((index for index, serials in enumerate(kinds) if serial in serials), None)
        if kind is not None:
            of_kind[kind] += change
        elif serial in before:
            released += max(before[serial] - size, 0) - max(before[serial] - sizes.get(serial, 0), 0)
        sizes[serial] = size
        total += change
        gradients, gathered, communication = of_kind
        found.append(
            Instant(
                number,
                Stretch(
                    peak=total,
                    net=total,
                    gradients=gradients,
                    peak_gradients=gradients,
                    peak_released=released,
                    gathered=gathered,
                    peak_gathered=gathered,
                    communication=communication,
                    peak_communication=communication,
                ),
            )
        )
    return found


def courses_between(
    alive: Sequence[Alive], places: Sequence[int], history: Sequence[Change], kinds: OfKind
) -> list[Course]:
    """The course from each cut to the next: `alive` are the storages at each cut, `places` where it is in `history`."""
    return [
        course_of(before, history[first:last], kinds)
        for before, (first, last) in zip(alive[:-1], pairwise(places), strict=True)
    ]


def thinned(course: Course, most: int) -> list[Instant]:
    """At most `most` + 1 instants: the one with most bytes of each of `most` equal parts, and the end."""
    number = len(course)
    if number <= most + 1:
        return list(course)
    ends = [part * number // most for part in range(most + 1)]
    worst = [
        max(course[first:last], key=lambda instant: instant.so_far.peak)
        for first, last in pairwise(ends)
        if last > first
    ]
    return worst if worst[-1].changes == course[-1].changes else [*worst, course[-1]]
