"""pandas and polars read rows in one call."""

from typing import Any

import pytest

from counting.analysis import analyze
from counting.records import TidyRow
from counting.setup import Setup
from tests.shrunken import LLAMA

FLOPS = 4_377_893_467_267_072_000_000_001  # of a whole run: more than 2^63, and odd
# More rows of one type than polars looks at by default, then other ones.
MIXED = [
    *(TidyRow("model", "total", "parameters", number, "parameter", "") for number in range(150)),
    TidyRow("model", "", "mfu", 0.4, "ratio", "MFU is of the dense peak."),
    TidyRow("model", "total", "training_flops", FLOPS, "FLOP", ""),
]


def test_pandas_reads_rows_in_one_call() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(MIXED)
    assert list(frame.columns) == ["scope", "component", "quantity", "value", "unit", "convention"]
    assert len(frame) == 152
    assert frame.value[151] == FLOPS, "with all digits"
    assert frame.value[150] == 0.4
    assert frame[frame.quantity == "parameters"].value.sum() == 150 * 149 / 2
    assert frame.astype({"value": float}).value.max() == float(FLOPS)


def test_polars_reads_rows_in_one_call() -> None:
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(MIXED)
    text = polars.String
    assert dict(frame.schema) == {
        "scope": text,
        "component": text,
        "quantity": text,
        "value": polars.Float64,
        "unit": text,
        "convention": text,
    }
    assert frame["value"][151] == float(FLOPS)
    assert frame["value"][150] == 0.4
    assert frame.filter(polars.col("quantity") == "parameters")["value"].sum() == 150 * 149 / 2


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_both_read_a_model(library: str) -> None:
    read: Any = pytest.importorskip(library).DataFrame
    rows = analyze(LLAMA, Setup(sequence_length=8), step=False).to_records()
    frame = read(rows)
    assert list(frame["value"]) == [row.value for row in rows]
    assert list(frame["scope"]) == [row.scope for row in rows]
