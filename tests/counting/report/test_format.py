"""How numbers look."""

import pytest

from counting.report.format import (
    FLOP_UNITS,
    NONE,
    Bytes,
    Number,
    decimal,
    dollars,
    gib,
    integer,
    length_source,
    optional,
    percent,
    readable,
    readable_dollars,
    readable_range,
    scientific,
    share,
    shifted,
    short_percent,
    signed_percent,
    significant,
    three_digits,
)


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


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (0.04372, "0.0437"),
        (1.8273, "1.83"),
        (9.996, "10.0"),
        (42.94, "42.9"),
        (99.96, "100"),
        (291.8, "292"),
        (999.6, "1,000"),
        (18273.4, "18,273"),
        (2.5, "2.5"),
        (15, "15"),
        (300, "300"),
    ],
)
def test_three_digits(value: float, expected: str) -> None:
    assert three_digits(value) == expected


def test_readable() -> None:
    assert [readable(value) for value in (6_738_415_616, 671_026_404_352, 15 * 10**12, 160_320)] == [
        "6.74 B",
        "671 B",
        "15 T",
        "160,320",
    ]
    assert [readable(value) for value in (9.99e17, 1e18, 1.4264e27)] == ["999,000 T", "1.00e+18", "1.43e+27"]
    assert readable(0.941292, ()) == "0.941"
    assert [three_digits(value) for value in (1e-8, 6.8e-130, 2e18)] == ["0.00000001", "6.80e-130", "2.00e+18"]
    assert [readable(value) for value in (999_400_000, 999_600_000)] == ["999 M", "1.00 B"]
    assert readable(42_863_689_728, FLOP_UNITS) == "42.9 GFLOP"
    assert readable(2_523_955_986_432, FLOP_UNITS) == "2.52 TFLOP"
    assert [readable_dollars(value) for value in (9_221_666, 75_757.5, 2.5)] == ["$9.22 M", "$75,758", "$2.50"]


def test_a_range_has_the_unit_of_its_larger_end() -> None:
    assert readable_range(952_526, 1_587_544, "$") == f"$0.953{NONE}1.59 M"
    assert readable_range(158_754, 264_591) == f"158,754{NONE}264,591"
    assert readable_range(7.35, 12.25) == f"7.35{NONE}12.2"
    assert readable_range(2_664_000, 2_664_000) == "2.66 M"
    assert readable_range(2e17, 1.01e304) == f"200,000 T{NONE}1.01e+304"
    assert readable_range(6.8e-118, 22.6e12) == f"6.80e-118{NONE}22.6 T"


def test_shares_in_short() -> None:
    assert [short_percent(part) for part in (0.4, 0.4554, 1, 0.00001)] == ["40 %", "45.5 %", "100 %", "0.001 %"]


def test_bytes_beside_each_other_have_one_unit() -> None:
    size = Bytes(753_696_792)
    assert (size(753_696_792), size.number(404_766_720), size.number(1)) == ("0.754 GB", "0.405", "< 0.001")
    assert Bytes(108_300_000_000)(107_814_649_856) == "107.8 GB"
    assert Bytes(10_952_248_978_436)(8_325_185_544) == "8 GB"
    assert Bytes(372_888)(372_888) == "372.9 KB"
    assert Bytes(17)(17) == "17 bytes"
    assert gib(80 * 2**30) == "80.0 GiB"


@pytest.mark.parametrize(
    ("number", "shown", "value"),
    [
        (integer(1234567), "1,234,567", 1234567),
        (decimal(1234.56, 1), "1,234.6", 1234.56),
        (significant(1234.5), "1,234.5", 1234.5),
        (percent(0.43731), "43.73 %", 0.43731),
        (signed_percent(-0.12345, 1), "-12.3 %", -0.12345),
        (dollars(5576000.4), "$5,576,000", 5576000.4),
        (scientific(123456), "1.235e+05", 123456),
        (shifted(1234567890, 9, places=1), "1.2", 1234567890),
        (shifted(1500000000, 9), "1.5", 1500000000),
    ],
)
def test_a_number_keeps_its_value(number: Number, shown: str, value: float) -> None:
    assert (number, number.value, type(number.value)) == (shown, value, type(value))
