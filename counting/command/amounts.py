"""Amounts as a user types them: 15T tokens, 2.664M hours, 2048 GPUs."""

import re
from fractions import Fraction

from torch_models.errors import ConfigError

SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
LARGEST_TOKENS = 10**18
LARGEST_GPUS = 10**8
LARGEST_HOURS = 10**15
_AMOUNT = re.compile(r"([0-9]{1,20})(?:\.([0-9]{1,20}))?(?:[eE]\+?([0-9]{1,2}))?([KMBTkmbt]?)")


def parse_tokens(text: str, field: str = "--tokens") -> int:
    """A whole number of tokens from "15T", "14.8T", "300B", "1e12"; anything else is an error that names the flag."""
    return _whole(text, field, "tokens", LARGEST_TOKENS)


def parse_num_gpus(text: str, field: str = "--num_gpus") -> int:
    """A whole number of GPUs, at least one."""
    return _whole(text, field, "GPUs", LARGEST_GPUS)


def parse_hours(text: str, field: str = "--gpu_hours") -> float:
    """GPU-hours above zero, from "2.664M"."""
    hours = _amount(text)
    if hours is None or not 0 < hours <= LARGEST_HOURS:
        raise ConfigError(field, text, f"must be a number of hours above 0, at most {LARGEST_HOURS:.0e}, as 2.664M")
    return float(hours)


def _whole(text: str, field: str, unit: str, largest: int) -> int:
    amount = _amount(text)
    if amount is None or amount.denominator != 1 or not 1 <= amount <= largest:
        examples = ", ".join(f"{suffix} for {factor:.0e}" for suffix, factor in SUFFIXES.items() if suffix)
        raise ConfigError(field, text, f"must be a whole number of {unit} from 1 to {largest:.0e}; {examples}")
    return int(amount)


def _amount(text: str) -> Fraction | None:
    """The exact number that `text` spells; None where it spells none, or one too long to be meant."""
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        return None
    whole, decimals, exponent, suffix = match.groups(default="")
    power_of_ten: int = 10 ** int(exponent or 0)
    return Fraction(f"{whole}.{decimals or 0}") * power_of_ten * SUFFIXES[suffix.upper()]
