"""Sums over a log of allocations, for the tests of logs."""

from collections.abc import Iterator, Sequence

from counting.allocator.events import Allocate, Event, Free, Mark

WORKSPACE = "workspace"


def without_workspaces(events: Sequence[Event]) -> list[Event]:
    """The log without what kernels allocate beside their results."""
    inside = {event.key for event in events if isinstance(event, Allocate) and event.name == WORKSPACE}
    return [event for event in events if not isinstance(event, Allocate | Free) or event.key not in inside]


def requested_at_marks(events: Sequence[Event]) -> dict[str, tuple[int, int]]:
    """At each mark: the bytes that are in use, and the most since the mark before; as asked for, not rounded."""
    live: dict[int, int] = {}
    found, now, peak = {}, 0, 0
    for event in events:
        if isinstance(event, Allocate):
            assert event.key not in live, "a key is of one storage"
            live[event.key] = event.bytes
            now += event.bytes
            peak = max(peak, now)
        elif isinstance(event, Free):
            now -= live.pop(event.key)
        elif isinstance(event, Mark):
            found[event.name] = now, peak
            peak = now
    return found


def peak_of_step(events: Sequence[Event], step: int) -> int:
    """The most bytes that are in use in this step, as asked for."""
    return max(peak for name, (_, peak) in requested_at_marks(events).items() if name.endswith(f" of step {step}"))


def allocations(events: Sequence[Event]) -> Iterator[Allocate]:
    """What is allocated, in order."""
    return (event for event in events if isinstance(event, Allocate))
