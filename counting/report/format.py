"""Formats of numbers and units for all reports: all digits in the tables, three digits on the first screen."""

from math import floor, log10

NONE = "\N{EN DASH}"  # printed if there is no number
COUNT_UNITS = ((12, "T"), (9, "B"), (6, "M"))  # for parameters, tokens, dollars, hours; all digits below a million
FLOP_UNITS = ((12, "TFLOP"), (9, "GFLOP"), (6, "MFLOP"), (3, "kFLOP"), (0, "FLOP"))
TIME_UNITS = ((0, "s"), (-3, "ms"), (-6, "µs"), (-9, "ns"))
BYTE_UNITS = ((9, "GB"), (6, "MB"), (3, "KB"), (0, "bytes"))


class Number(str):
    """A number as it is shown, maybe rounded or in another unit; `value` is the number itself, as the JSON has it."""

    value: int | float

    def __new__(cls, shown: str, value: int | float) -> "Number":
        """`shown` with `value` beside it."""
        number = super().__new__(cls, shown)
        number.value = value
        return number


def integer(value: int) -> Number:
    """1234567 -> 1,234,567."""
    return Number(f"{value:,}", value)


def decimal(value: float, places: int) -> Number:
    """1234.567 to 1 place -> 1,234.6."""
    return Number(f"{value:,.{places}f}", value)


def in_unit(value: float, power: int, digits: int = 6) -> Number:
    """`value` / 10^`power` with so many digits at most, zeros at the end left out: 1234567, 6, 4 -> 1.235."""
    return Number(f"{value / 10**power:.{digits}g}", value)


def significant(value: float) -> Number:
    """Six digits at most, zeros at the end left out: 989.0 -> 989, 1234.5 -> 1,234.5."""
    return Number(f"{value:,g}", value)


def numbered(number: int, noun: str) -> str:
    """1, "GPU" -> 1 GPU; 2,048 GPUs."""
    return f"{integer(number)} {noun}{'' if number == 1 else 's'}"


def share(part: int, whole: int) -> str:
    """`part` in percent of `whole`; "< 0.01 %" if it is above 0 but smaller."""
    percent = 100 * part / whole
    return "< 0.01 %" if part and percent < 0.01 else f"{percent:.2f} %"


def shifted(value: int, decimals: int, *, places: int | None = None) -> Number:
    """`value` / 10^`decimals` with all decimal digits, or rounded to `places`."""
    if places is not None:
        return Number(f"{value / 10**decimals:,.{places}f}", value)
    whole, rest = divmod(value, 10**decimals)
    return Number(f"{whole}.{rest:0{decimals}d}".rstrip("0").rstrip("."), value)


def percent(part: float, places: int = 2) -> Number:
    """0.4373 -> 43.73 %."""
    return Number(f"{100 * part:,.{places}f} %", part)


def signed_percent(part: float, places: int = 2) -> Number:
    """-0.1234 -> -12.34 %, 0.1234 -> +12.34 %."""
    return Number(f"{100 * part:+.{places}f} %", part)


def dollars(amount: float) -> Number:
    """Whole dollars from $1,000 on; dollars and cents below."""
    return Number(f"${amount:,.0f}" if amount >= 1000 else f"${amount:,.2f}", amount)


def scientific(value: float) -> Number:
    """Four digits and a power of ten: 1.234e+24."""
    return Number(f"{value:.3e}", value)


def optional(value: float | None, places: int = 0) -> str:
    """`value` with `places` decimals, or a dash if it is None."""
    return NONE if value is None else decimal(value, places)


def length_source(source: str | None) -> str:
    """The source of a sequence length: "given", or "from" a field of the config."""
    return "given" if source == "given" else f"from {source}"


def recompute_in_words(recompute: str | int) -> str:
    """What is recomputed: 4 -> one layer in 4."""
    return f"one layer in {integer(recompute)}" if isinstance(recompute, int) else recompute


# --- Readable: three digits and a unit ---------------------------------------------------------------------------


_FEWEST, _MOST = 1e-9, 1e18  # outside, a number is easier to read with a power of ten


def three_digits(value: float) -> str:
    """1.8273 -> 1.83, 182.73 -> 183, 18273 -> 18,273; zeros at the end are left out: 2.5, 15. 1.8e20 -> 1.80e+20."""
    if not value:
        return "0"
    if not _FEWEST <= value < _MOST:
        return f"{value:.2e}"
    rounded = float(f"{value:.3g}") if value < 1000 else float(round(value))
    text = f"{rounded:,.{max(0, 2 - floor(log10(rounded)))}f}"
    return text.rstrip("0").rstrip(".") if rounded == value and "." in text else text


def readable(value: float, units: tuple[tuple[int, str], ...] = COUNT_UNITS) -> str:
    """6738415616 -> 6.74 B; a value smaller than every unit has no unit, nor has a count of a million T: 1.00e+18."""
    if COUNT_UNITS[0] in units and value >= _MOST:
        return f"{value:.2e}"
    rounded = float(f"{value:.3g}")
    for power, unit in units:
        if rounded >= 10**power:
            return f"{three_digits(value / 10**power)} {unit}"
    return three_digits(value)


def readable_seconds(seconds: float) -> str:
    """18.23 -> 18.2 s, 0.01234 -> 12.3 ms; what is shorter than a nanosecond is in nanoseconds too."""
    power, unit = TIME_UNITS[-1]
    return readable(seconds, TIME_UNITS) if seconds >= 10**power else f"{three_digits(seconds / 10**power)} {unit}"


def readable_dollars(amount: float) -> str:
    """$86.1 M; below a million as `dollars`."""
    return f"${readable(amount)}" if amount >= 10**6 else dollars(amount)


def readable_range(low: float, high: float, prefix: str = "") -> str:
    """Two numbers joined by a dash, in the unit of `high`; one number if both ends have the same digits.

    Each has its own unit if `high` is beyond all units, or `low` next to nothing beside it.
    """
    power, unit = next(((power, f" {unit}") for power, unit in COUNT_UNITS if high >= 10**power), (0, ""))
    if high >= _MOST or low < _FEWEST * 10**power:
        each = [readable(value) for value in (low, high)]
        return f"{prefix}{each[0] if each[0] == each[1] else NONE.join(each)}"
    ends = [three_digits(value / 10**power) for value in (low, high)]
    return f"{prefix}{ends[0] if ends[0] == ends[1] else NONE.join(ends)}{unit}"


def short_percent(part: float) -> str:
    """At most three digits: 0.4 -> 40 %, 0.4554 -> 45.5 %."""
    return f"{100 * part:.3g} %"


def gib(bytes_: int) -> str:
    """Bytes in units of 2^30 bytes, as for the memory of GPUs."""
    return f"{bytes_ / 2**30:,.1f} GiB"


class Bytes:
    """Formats several byte counts in the same unit and with the same number of decimals, which fit the largest one."""

    def __init__(self, largest: int) -> None:
        self.power, self.unit = next(
            ((power, unit) for power, unit in BYTE_UNITS if largest >= 10**power // 2), BYTE_UNITS[-1]
        )
        size = largest / 10**self.power
        self.places = 0 if size >= 1000 or not self.power else 1 if size >= 10 else 3

    def number(self, value: int) -> str:
        """`value` without the unit; "< 0.001" or similar if it is above 0 but would be rounded to 0."""
        smallest = 10.0**-self.places
        size = value / 10**self.power
        return f"< {smallest:g}" if 0 < size < smallest / 2 else f"{size:,.{self.places}f}"

    def __call__(self, value: int) -> str:
        """`value` with the unit."""
        return f"{self.number(value)} {self.unit}"
