"""Parsers of amounts as a user types them: 15T tokens, 2.664M hours, 2,048 GPUs, $5M.

Each parser raises an ArgumentError that names the flag.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import cast

from counting.cost.budget import DOLLARS_RULE, check_dollars, check_mfu
from counting.cost.hardware import Gpu, find_gpu, load_gpus
from torch_models.errors import ArgumentError
from torch_models.spec import ModelRecompute, Recompute

SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
LARGEST_TOKENS = 10**18
LARGEST_GPUS = 10**8
LARGEST_HOURS = 10**15
LARGEST_SPEED = 10**9
LARGEST_WATTS = 10**6
_AMOUNT = re.compile(
    r"([0-9]{1,20}|[0-9]{1,3}(?:,[0-9]{3}){1,6})(?:\.([0-9]{1,20}))?(?:[eE]\+?([0-9]{1,2}))?([KMBTkmbt]?)"
)


def parse_tokens(text: str, flag: str = "--tokens", most: int = LARGEST_TOKENS) -> int:
    """A whole number of tokens, at most `most`, from "15T", "14.8T", "300B", "1e12"."""
    return _whole(text, flag, "tokens", most)


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


def parse_recompute(text: str) -> ModelRecompute:
    """What is recomputed in backward, or the number of layers of which one is."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else cast(Recompute, text)


def parse_speed(text: str, flag: str = "--tokens_per_second_per_gpu") -> float:
    """Tokens per second above zero, from "11000", "11k" or "11,000"."""
    speed = _amount(text)
    if speed is None or not 0 < speed <= LARGEST_SPEED:
        rule = f"must be a number of tokens per second above 0, at most {LARGEST_SPEED:.0e}, as 11000"
        raise ArgumentError(flag, text, rule)
    return float(speed)


def parse_watts(text: str, flag: str = "--power_watts") -> float:
    """Watts above zero, from "500"."""
    watts = _amount(text)
    if watts is None or not 0 < watts <= LARGEST_WATTS:
        raise ArgumentError(flag, text, f"must be a number of watts above 0, at most {LARGEST_WATTS:.0e}, as 500")
    return float(watts)


def parse_dollars(text: str, flag: str = "--training_budget") -> float:
    """US dollars from "5M", "200k", "$5,000,000" or "1.50"; NaN, infinity, 0 and negative numbers are errors."""
    amount = _amount(text.strip().removeprefix("$"))
    if amount is not None:
        return check_dollars(float(amount), flag)
    number = _float(text)
    if isinstance(number, str):
        raise ArgumentError(flag, text, f"{DOLLARS_RULE}, as 5M, 200k or $5,000,000")
    return check_dollars(number, flag)


def parse_mfu(text: str, flag: str = "--mfu") -> float:
    """The utilisation in `text`, from 1e-6 to 1."""
    return check_mfu(_float(text), flag)


def parse_ratio(text: str) -> float | str:
    """The number in `text`, else `text` itself, for an argument that the library checks."""
    return _float(text)


def parse_gpus(text: str, flag: str = "--gpus", own: Sequence[Gpu] = ()) -> tuple[Gpu, ...]:
    """The GPUs named in a text such as "H100,H200": from the user's `own`, else from the catalogue."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ArgumentError(flag, text, "must be GPU names separated by commas, as H100,H200")
    gpus = tuple(_find(name, flag, own) for name in names)
    for gpu in gpus:
        if gpus.count(gpu) > 1:
            raise ArgumentError(flag, ",".join(each.name for each in gpus), f"names {gpu.name} twice")
    return gpus


def parse_prices(text: str, flag: str = "--gpu_prices", own: Sequence[Gpu] = ()) -> dict[str, float]:
    """Dollars per hour by GPU, from "A100=1.50,L4=0.70"."""
    prices: dict[str, float] = {}
    for item in text.split(","):
        name, equals, price = item.partition("=")
        if not equals:
            raise ArgumentError(flag, text, "must be GPU=price pairs separated by commas, as A100=1.50,L4=0.70")
        gpu = _find(name.strip(), flag, own).name
        if gpu in prices:
            raise ArgumentError(flag, text, f"give the price of {gpu} once")
        prices[gpu] = parse_dollars(price, f"{flag} {gpu}")
    return prices


def _find(name: str, flag: str, own: Sequence[Gpu]) -> Gpu:
    """The GPU called `name`, in upper or lower case. No name is both in `own` and in the catalogue."""
    for gpu in own:
        if gpu.name.lower() == name.lower():
            return gpu
    try:
        return find_gpu(name)
    except ArgumentError:
        known = ", ".join(gpu.name for gpu in (*own, *load_gpus()))
        raise ArgumentError(flag, name, f"is not known: choose from {known}, or describe it in a --gpu_file") from None


def _whole(text: str, flag: str, unit: str, largest: int) -> int:
    amount = _amount(text)
    if amount is None or amount.denominator != 1 or not 1 <= amount <= largest:
        examples = ", ".join(f"{suffix} for {factor:.0e}" for suffix, factor in SUFFIXES.items() if suffix)
        raise ArgumentError(flag, text, f"must be a whole number of {unit} from 1 to {largest:.0e}; {examples}")
    return int(amount)


def _amount(text: str) -> Fraction | None:
    """The exact number in `text`; None if it is not a number or has too many digits."""
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        return None
    whole, decimals, exponent, suffix = match.groups(default="")
    power_of_ten: int = 10 ** int(exponent or 0)
    return Fraction(f"{whole.replace(',', '')}.{decimals or 0}") * power_of_ten * SUFFIXES[suffix.upper()]


def _float(text: str) -> float | str:
    """The number in `text`, else `text` itself, which every check refuses.

    Python's float also accepts digits of other scripts and underscores (1_0 for 10); they are refused here.
    """
    try:
        return float(text) if text.isascii() and "_" not in text else text
    except ValueError:
        return text
