"""Where the driver puts plain segments: it does not say, so that several orders of addresses are tried. Torch-free.

An order is a function: the bytes of a new segment in, its address out. Segments never overlap.
"""

import random
from collections.abc import Callable

PlaceOfSegment = Callable[[int], int]

LOWEST_ADDRESS = 1 << 46
_APART = 1 << 44  # shuffled addresses are multiples of it: no segment is that long


def rising_addresses() -> PlaceOfSegment:
    """Each segment right behind the one before."""
    end = LOWEST_ADDRESS

    def place(size: int) -> int:
        nonlocal end
        end += size
        return end - size

    return place


def falling_addresses() -> PlaceOfSegment:
    """Each segment right before the one before."""
    start = 2 * LOWEST_ADDRESS

    def place(size: int) -> int:
        nonlocal start
        start -= size
        return start

    return place


def shuffled_addresses(seed: int) -> PlaceOfSegment:
    """Segments in an order at random, the same for one seed."""
    draw, segments = random.Random(seed), 0

    def place(size: int) -> int:
        nonlocal segments
        assert size <= _APART
        segments += 1
        return (draw.getrandbits(32) << 32 | segments) * _APART

    return place
