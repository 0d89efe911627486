"""What comes out of a replay: the bytes that the allocator reserved of the driver, and what they hold. Torch-free."""

import msgspec


class PoolShare(msgspec.Struct, frozen=True, kw_only=True):
    """Free bytes of one pool: of the segments for small blocks (up to 1 MiB) or for large ones of one stream.

    `idle_bytes` are segments (of an expandable segment, pages) that hold nothing: torch could give them back. The
    other free blocks, beside used ones, are `fragment_bytes`.
    """

    stream: str
    small: bool
    reserved_bytes: int
    idle_bytes: int
    fragment_bytes: int


class ReservedPeak(msgspec.Struct, frozen=True, kw_only=True):
    """What one replay has reserved at most, at the moment at which most of it is allocated; the parts sum to the whole.

    Nothing is given back to the driver, so that from the last segment, or page, to the end all moments have as much
    reserved. Of those, the first with most bytes in blocks of storages is taken.
    """

    reserved_bytes: int
    requested_bytes: int  # what the storages of that moment asked for
    rounding_bytes: int  # their blocks beyond that
    waiting_bytes: int  # freed, but another stream may still use them
    pools: tuple[PoolShare, ...]

    @property
    def allocated_bytes(self) -> int:
        """Blocks of storages, as `torch.cuda.memory_allocated` counts them."""
        return self.requested_bytes + self.rounding_bytes

    @property
    def idle_bytes(self) -> int:
        """Segments or pages that hold nothing, of all pools."""
        return sum(pool.idle_bytes for pool in self.pools)

    @property
    def fragment_bytes(self) -> int:
        """Free blocks beside used ones, of all pools."""
        return sum(pool.fragment_bytes for pool in self.pools)


class MarkedMoment(msgspec.Struct, frozen=True, kw_only=True):
    """The state at a `Mark`, and the most that was allocated since the mark before, or the beginning."""

    name: str
    allocated_bytes: int
    reserved_bytes: int
    peak_allocated_bytes: int


class Reserved(msgspec.Struct, frozen=True, kw_only=True):
    """The peaks of all replays of one log, which differ in the addresses of segments alone.

    Expandable segments are one growing segment a pool: there is one replay, and `low` is `high`.
    """

    expandable_segments: bool
    replays: int
    low: ReservedPeak
    high: ReservedPeak
    peak_allocated_bytes: tuple[int, int]  # low and high: which block is taken decides how far it exceeds its storage
    moments: tuple[MarkedMoment, ...]  # of the replay that reserves least

    @property
    def reserved_bytes(self) -> tuple[int, int]:
        """The peak as `torch.cuda.max_memory_reserved` counts it: the least and the most of the replays."""
        return self.low.reserved_bytes, self.high.reserved_bytes
