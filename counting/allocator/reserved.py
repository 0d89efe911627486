"""What comes out of a replay: bytes that the allocator reserved of the driver, and what they hold. Torch-free."""

import msgspec


class PoolShare(msgspec.Struct, frozen=True, kw_only=True):
    """Unused bytes of one pool: the blocks of one stream, of small storages (up to 1 MiB) or of larger ones.

    Whole segments (of an expandable segment, whole pages) that hold nothing are `idle_bytes`; a larger storage of this
    stream could use them, and `torch.cuda.empty_cache` would give them back. Free blocks beside used ones are
    `fragment_bytes`.
    """

    stream: str
    small: bool
    reserved_bytes: int
    idle_bytes: int
    fragment_bytes: int


class ReservedPeak(msgspec.Struct, frozen=True, kw_only=True):
    """The first moment at which one replay has most bytes reserved, and what they are; the parts sum to the whole."""

    reserved_bytes: int
    requested_bytes: int  # what the storages of that moment asked for
    rounding_bytes: int  # their blocks beyond that
    pools: tuple[PoolShare, ...]

    @property
    def allocated_bytes(self) -> int:
        """Blocks in use, as `torch.cuda.memory_allocated` counts them."""
        return self.requested_bytes + self.rounding_bytes

    @property
    def idle_bytes(self) -> int:
        """Empty segments or pages, of all pools."""
        return sum(pool.idle_bytes for pool in self.pools)

    @property
    def fragment_bytes(self) -> int:
        """Free blocks beside used ones, of all pools."""
        return sum(pool.fragment_bytes for pool in self.pools)


class MarkedMoment(msgspec.Struct, frozen=True, kw_only=True):
    """The state at a `Mark` of the replay that reserves least, and the most since the mark before."""

    name: str
    allocated_bytes: int
    reserved_bytes: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int


class Reserved(msgspec.Struct, frozen=True, kw_only=True):
    """The peak of reserved bytes over all replays of one log, which differ in the addresses of segments alone.

    Expandable segments are one growing segment a pool: there is one replay, and `low` is `high`.
    """

    expandable_segments: bool
    replays: int
    low: ReservedPeak
    high: ReservedPeak
    peak_allocated_bytes: tuple[int, int]  # low and high: a block can be larger than what was asked for
    moments: tuple[MarkedMoment, ...]

    @property
    def reserved_bytes(self) -> tuple[int, int]:
        """The peak as `torch.cuda.max_memory_reserved` counts it: the least and the most of the replays."""
        return self.low.reserved_bytes, self.high.reserved_bytes
