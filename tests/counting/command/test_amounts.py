"""Amounts as they are typed."""

import msgspec
import pytest

from counting.command.amounts import (
    parse_dollars,
    parse_gpus,
    parse_hours,
    parse_mfu,
    parse_num_gpus,
    parse_prices,
    parse_speed,
    parse_tokens,
    parse_whole_number,
)
from counting.cost.hardware import find_gpu
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
        ("2,000,000", 2_000_000),
        ("1,500.5B", 15005 * 10**8),
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
        *(
            "1e400",
            "1e99",
            "1e-3",
            "1000001T",
            "1,5T",
            "1,50,000",
            ",500",
            "1000,000",
            "9" * 21,
            "\N{ARABIC-INDIC DIGIT ONE}",
            "15T\n15T",
        ),
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


def test_a_whole_number_is_of_digits_alone() -> None:
    assert parse_whole_number("0", "--seq_len") == 0
    assert parse_whole_number("00016384", "--seq_len") == 16384
    for text in ("", "4k", "-1", "1.0", "1e3", " 1", "9" * 21, "\N{ARABIC-INDIC DIGIT ONE}", "\N{SUPERSCRIPT TWO}"):
        with pytest.raises(UserError, match=r"^--seq_len = .*: must be a whole number$"):
            parse_whole_number(text, "--seq_len")


# --- Dollars, utilisations, GPUs --------------------------------------------------------------------------------

DOLLARS_RULE = r"must be a number of US dollars from 0\.01 to 1e\+15"


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "-1", "0", "$0", "1e16", "2000T", "0.009"])
def test_a_number_that_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=f"^--training_budget = .*: {DOLLARS_RULE}$"):
        parse_dollars(text)


@pytest.mark.parametrize(
    "text", ["", "much", "$", "5MM", "5 M", "5M$", "$$5", "$-5", "5,00", "5,0000", "1,2,3", "5.000.000", "0x10", "1_0"]
)
def test_text_that_is_no_budget_is_refused(text: str) -> None:
    rule = rf"{DOLLARS_RULE}, as 5M, 200k or \$5,000,000$"
    with pytest.raises(UserError, match=f"^--training_budget = .*: {rule}"):
        parse_dollars(text)


@pytest.mark.parametrize(
    ("text", "dollars"),
    [
        *[(text, 5e6) for text in ("5M", "5m", "$5M", "5,000,000", "$5,000,000", "$5,000,000.00", "5000k", "5e6")],
        *[(text, 2e5) for text in ("200k", "200K", "$200,000", " 200000 ", "0.2M", "2E+5")],
        *[("1.5B", 1.5e9), ("$4.10", 4.1), ("1e-2", 0.01), (".5", 0.5), ("2.", 2.0), ("1T", 1e12), ("0.1", 0.1)],
    ],
)
def test_money_as_people_write_it(text: str, dollars: float) -> None:
    assert parse_dollars(text) == dollars


def test_a_speed_is_above_0() -> None:
    assert [parse_speed(text) for text in ("11000", "11k", "11,000", "0.5")] == [11000, 11000, 11000, 0.5]
    for text in ("0", "", "-1", "nan", "inf", "fast", "1e10", "11 000"):
        with pytest.raises(
            UserError, match=r"^--tokens_per_second_per_gpu = .*: must be a number of tokens per second"
        ):
            parse_speed(text)


@pytest.mark.parametrize("text", ["", "40%", "40", "0", "-0.1", "nan"])
def test_text_that_is_no_utilisation_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^--mfu = .*: must be a number from 1e-06 to 1$"):
        parse_mfu(text)


def test_text_that_is_a_number_is_read() -> None:
    assert (parse_dollars("5e6"), parse_dollars("5000000"), parse_mfu("1"), parse_mfu("0.4")) == (5e6, 5e6, 1.0, 0.4)
    assert [gpu.name for gpu in parse_gpus("h100, H200")] == ["H100", "H200"]
    assert parse_prices("a100=1.50,L4=0.7") == {"A100": 1.5, "L4": 0.7}
    assert parse_prices("A100=$1.50, h100=2k") == {"A100": 1.5, "H100": 2000}


def test_a_gpu_of_ones_own_is_found_beside_the_catalogue() -> None:
    own = [msgspec.structs.replace(find_gpu("H100"), name="Ours")]
    assert parse_gpus("OURS,A100", own=own) == (own[0], find_gpu("A100"))
    assert parse_prices("ours=1", own=own) == {"Ours": 1}
    with pytest.raises(
        UserError, match=r"^--gpus = 'K80': is not known: choose from Ours, V100, .*, or describe it in"
    ):
        parse_gpus("K80", own=own)


def test_a_gpu_is_named_once() -> None:
    with pytest.raises(UserError, match=r"^--gpus = 'A100,H100,A100': names A100 twice$"):
        parse_gpus("A100,H100,a100")


@pytest.mark.parametrize("text", ["", ",", "A100,", "A100,,T4"])
def test_an_empty_gpu_name_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^--gpus = .*: must be GPU names separated by commas, as H100,H200$"):
        parse_gpus(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A100", "--gpu_prices = 'A100': must be GPU=price pairs separated by commas, as A100=1.50,L4=0.70"),
        ("A100=1,a100=2", "--gpu_prices = 'A100=1,a100=2': give the price of A100 once"),
        ("A100=-1", f"--gpu_prices A100 = -1.0: {DOLLARS_RULE}"),
        ("A100=", f"--gpu_prices A100 = '': {DOLLARS_RULE}"),
        ("A100=1,500", "--gpu_prices = 'A100=1,500': must be GPU=price pairs"),
        ("X1=2", "--gpu_prices = 'X1': is not known: choose from "),
    ],
)
def test_a_malformed_price_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        parse_prices(text)
