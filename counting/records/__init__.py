"""Results as tidy rows: one number a row, with its unit and the convention that it is counted by.

`record` (a row), `tidy` (the base class of results). Nothing here formats, and nothing here computes.
"""

from counting.records.record import TidyRow
from counting.records.tidy import Tidy

__all__ = ["Tidy", "TidyRow"]
