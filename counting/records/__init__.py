"""Results as tidy rows: one number a row, with its unit and the convention that it is counted by.

    import pandas, polars
    rows = analyze("deepseek_v3").to_records()
    pandas.DataFrame(rows)  # or polars.DataFrame(rows)

`record` (a row), `tidy` (the base class of results), `walk` (from the fields of a result to its rows), `places` (what
these are called), `units`, `conventions` (the sentences that govern numbers), `notebook` (the small table of a result).
Nothing here computes.
"""

from counting.records.record import TidyRow
from counting.records.tidy import Tidy

__all__ = ["Tidy", "TidyRow"]
