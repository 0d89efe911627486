"""The base class of results."""

import msgspec

from counting.records.record import TidyRow


class Tidy(msgspec.Struct, frozen=True, kw_only=True):
    """A result that can be taken away as rows."""

    def to_records(self) -> list[TidyRow]:
        """One row for each number of the result, with the value of the JSON document; words and null have no row.

        Of an `Analysis`, the values of each witness are rows of its `agreement`, and not of itself.
        """
        from counting.records.walk import tidy_rows

        return tidy_rows(self)

    def _repr_html_(self) -> str:
        """A small table, which notebooks show in place of the text."""
        from counting.records.notebook import html_table

        return html_table(type(self).__name__, self.to_records())
