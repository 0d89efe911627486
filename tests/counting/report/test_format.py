"""How numbers look."""

import pytest

from counting.report.format import NONE, dollars, length_source, optional, percent, scientific, share, shifted


@pytest.mark.parametrize(
    ("value", "decimals", "expected"),
    [
        (897_648_164_864, 12, "0.897648164864"),
        (10**12, 12, "1"),
        (15 * 10**11, 12, "1.5"),
        (1, 12, "0.000000000001"),
        (0, 9, "0"),
        (2**70, 9, "1180591620717.411303424"),
    ],
)
def test_shifted_is_exact(value: int, decimals: int, expected: str) -> None:
    assert shifted(value, decimals) == expected


@pytest.mark.parametrize(
    ("part", "whole", "expected"), [(1, 4, "25.00 %"), (0, 4, "0.00 %"), (1, 10**6, "< 0.01 %"), (5, 5, "100.00 %")]
)
def test_share(part: int, whole: int, expected: str) -> None:
    assert share(part, whole) == expected


def test_formats() -> None:
    assert percent(0.4373) == "43.73 %"
    assert percent(0.4, 0) == "40 %"
    assert (dollars(5_576_000), dollars(2.5)) == ("$5,576,000", "$2.50")
    assert scientific(3.707e24) == "3.707e+24"
    assert (optional(None), optional(1234.5, 1), optional(2048)) == (NONE, "1,234.5", "2,048")


def test_who_says_how_long_a_sequence_is() -> None:
    assert length_source("given") == "given"
    assert length_source("max_position_embeddings") == "from max_position_embeddings"
