"""A log in, reserved bytes out. Torch-free."""

from collections.abc import Iterable

from counting.allocator.events import Event
from counting.allocator.reserved import Reserved


def replay(events: Iterable[Event], *, expandable_segments: bool = False) -> Reserved:
    """What the allocator reserves, by replaying `events`.

    With plain segments, once for each of several orders of their addresses: which of two equal free blocks is taken
    depends on them, and the driver chooses them.
    """
    raise NotImplementedError
