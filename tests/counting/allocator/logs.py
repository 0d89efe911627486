"""Logs of allocations that tests share."""

import random

from counting.allocator.events import Allocate, Event, Free, Mark, Synchronize, UsedBy

MIB = 1 << 20
STREAMS = ("compute", "gather", "reduce")


def random_log(seed: int, length: int = 600) -> list[Event]:
    """Storages of all kinds of sizes that come and go on several streams; some are used by another stream."""
    draw = random.Random(seed)
    events: list[Event] = []
    live: list[int] = []
    for key in range(length):
        size = draw.choice((0, draw.randrange(1, 5000), draw.randrange(1, 2 * MIB), draw.randrange(MIB, 70 * MIB)))
        events.append(Allocate(key, size, draw.choice(STREAMS), f"tensor {key}"))
        live.append(key)
        if draw.random() < 0.1:
            events.append(UsedBy(draw.choice(live), draw.choice(STREAMS)))
        while live and draw.random() < 0.48:
            events.append(Free(live.pop(draw.randrange(len(live)))))
        if draw.random() < 0.02:
            events.append(Synchronize())
        if draw.random() < 0.02:
            events.append(Mark(f"mark {key}"))
    return events
