"""Amounts as they are typed."""

import pytest

from counting.command.amounts import parse_hours, parse_num_gpus, parse_tokens
from torch_models.errors import UserError


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("15T", 15 * 10**12),
        ("14.8T", 148 * 10**11),
        ("14.8t", 148 * 10**11),
        ("300B", 300 * 10**9),
        ("16M", 16_000_000),
        ("4k", 4_000),
        ("2000000", 2_000_000),
        ("1e12", 10**12),
        ("1.5E13", 15 * 10**12),
        (" 1 ", 1),
        ("1000000T", 10**18),
        ("0.000000000001T", 1),
    ],
)
def test_tokens(text: str, tokens: int) -> None:
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "T",
            "15TT",
            "15 T",
            "x",
            "nan",
            "inf",
            "-5",
            "+5",
            "0",
            "0T",
            "1.5",
            "1.23K4",
            "1.",
            ".5T",
            "0x10",
            "1_0",
        ),
        *("1e400", "1e99", "1e-3", "1000001T", "9" * 21, "\N{ARABIC-INDIC DIGIT ONE}", "15T\n15T"),
    ],
)
def test_what_is_no_number_of_tokens(text: str) -> None:
    with pytest.raises(UserError, match=r"^--tokens = .*: must be a whole number of tokens from 1 to 1e\+18; K for"):
        parse_tokens(text)


def test_gpus_are_whole() -> None:
    assert parse_num_gpus("2048") == 2048
    assert parse_num_gpus("2K") == 2000
    for text in ("0", "1.5", "-1", "1e9", "many"):
        with pytest.raises(UserError, match=r"^--num_gpus = .*: must be a whole number of GPUs from 1 to 1e\+08"):
            parse_num_gpus(text)


def test_hours_may_be_a_fraction() -> None:
    assert parse_hours("2.664M") == 2_664_000
    assert parse_hours("0.5") == 0.5
    for text in ("0", "0.0", "nan", "-1", "1e99", "2M hours", ""):
        with pytest.raises(UserError, match=r"^--gpu_hours = .*: must be a number of hours above 0"):
            parse_hours(text)
