"""The base class of results."""

import msgspec

from counting.records.record import TidyRow


class Tidy(msgspec.Struct, frozen=True, kw_only=True):
    """A result that can be taken away as rows."""

    def to_records(self) -> list[TidyRow]:
        """One row for each number of the result."""
        raise NotImplementedError
