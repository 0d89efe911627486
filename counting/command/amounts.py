"""Amounts as a user types them: 15T tokens, 2.664M hours, 2048 GPUs, 1.50 dollars; an error names the flag."""

import re
from fractions import Fraction

from counting.cost.budget import check_dollars, check_mfu
from counting.cost.hardware import find_gpu
from torch_models.errors import ArgumentError

SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
LARGEST_TOKENS = 10**18
LARGEST_GPUS = 10**8
LARGEST_HOURS = 10**15
_AMOUNT = re.compile(r"([0-9]{1,20})(?:\.([0-9]{1,20}))?(?:[eE]\+?([0-9]{1,2}))?([KMBTkmbt]?)")


def parse_tokens(text: str, flag: str = "--tokens") -> int:
    """A whole number of tokens from "15T", "14.8T", "300B", "1e12"."""
    return _whole(text, flag, "tokens", LARGEST_TOKENS)


def parse_num_gpus(text: str, flag: str = "--num_gpus") -> int:
    """A whole number of GPUs, at least one."""
    return _whole(text, flag, "GPUs", LARGEST_GPUS)


def parse_hours(text: str, flag: str = "--gpu_hours") -> float:
    """GPU-hours above zero, from "2.664M"."""
    hours = _amount(text)
    if hours is None or not 0 < hours <= LARGEST_HOURS:
        raise ArgumentError(flag, text, f"must be a number of hours above 0, at most {LARGEST_HOURS:.0e}, as 2.664M")
    return float(hours)


def parse_whole_number(text: str, flag: str) -> int:
    """A whole number in plain digits."""
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        raise ArgumentError(flag, text, "must be a whole number")
    return int(text)


def parse_dollars(text: str, flag: str = "--training_budget") -> float:
    """The US dollars that `text` spells; no number, NaN, infinite, zero and negative are errors."""
    return check_dollars(_float(text), flag)


def parse_mfu(text: str, flag: str = "--mfu") -> float:
    """The utilisation that `text` spells, above 0 and at most 1."""
    return check_mfu(_float(text), flag)


def parse_gpus(text: str, flag: str = "--gpus") -> tuple[str, ...]:
    """GPU names, as the catalogue spells them, from "H100,H200"."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ArgumentError(flag, text, "must be GPU names separated by commas, as H100,H200")
    return tuple(find_gpu(name, flag).name for name in names)


def parse_prices(text: str, flag: str = "--gpu_prices") -> dict[str, float]:
    """Dollars per hour by GPU, from "A100=1.50,L4=0.70"."""
    prices: dict[str, float] = {}
    for item in text.split(","):
        name, equals, price = item.partition("=")
        if not equals:
            raise ArgumentError(flag, text, "must be GPU=price pairs separated by commas, as A100=1.50,L4=0.70")
        gpu = find_gpu(name, flag).name
        if gpu in prices:
            raise ArgumentError(flag, text, f"give the price of {gpu} once")
        prices[gpu] = parse_dollars(price, f"{flag} {gpu}")
    return prices


def _whole(text: str, flag: str, unit: str, largest: int) -> int:
    amount = _amount(text)
    if amount is None or amount.denominator != 1 or not 1 <= amount <= largest:
        examples = ", ".join(f"{suffix} for {factor:.0e}" for suffix, factor in SUFFIXES.items() if suffix)
        raise ArgumentError(flag, text, f"must be a whole number of {unit} from 1 to {largest:.0e}; {examples}")
    return int(amount)


def _amount(text: str) -> Fraction | None:
    """The exact number that `text` spells; None where it spells none, or one too long to be meant."""
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        return None
    whole, decimals, exponent, suffix = match.groups(default="")
    power_of_ten: int = 10 ** int(exponent or 0)
    return Fraction(f"{whole}.{decimals or 0}") * power_of_ten * SUFFIXES[suffix.upper()]


def _float(text: str) -> float | str:
    """The number that `text` spells, else the text itself, which no check lets pass.

    Python's float also takes digits of other scripts, and underscores: 1_0 for 10.
    """
    try:
        return float(text) if text.isascii() and "_" not in text else text
    except ValueError:
        return text
