"""How numbers and units look, the same in every report: digit by digit in the tables, readable on the first screen."""

from math import floor, log10

NONE = "\N{EN DASH}"  # where there is no number
COUNT_UNITS = ((12, "T"), (9, "B"), (6, "M"))  # of parameters, tokens, dollars, hours; below a million, digits
FLOP_UNITS = ((12, "TFLOP"), (9, "GFLOP"), (6, "MFLOP"), (3, "kFLOP"), (0, "FLOP"))
BYTE_UNITS = ((9, "GB"), (6, "MB"), (3, "KB"), (0, "bytes"))


def integer(value: int) -> str:
    """1234567 -> 1,234,567."""
    return f"{value:,}"


def share(part: int, whole: int) -> str:
    """A percentage; what is there but rounds to nothing is not called 0 %."""
    percent = 100 * part / whole
    return "< 0.01 %" if part and percent < 0.01 else f"{percent:.2f} %"


def shifted(value: int, decimals: int, *, places: int | None = None) -> str:
    """`value` / 10^decimals in decimal digits: all of them, or rounded to `places`."""
    if places is not None:
        return f"{value / 10**decimals:,.{places}f}"
    whole, rest = divmod(value, 10**decimals)
    return f"{whole}.{rest:0{decimals}d}".rstrip("0").rstrip(".")


def percent(part: float, places: int = 2) -> str:
    """0.4373 -> 43.73 %."""
    return f"{100 * part:,.{places}f} %"


def dollars(amount: float) -> str:
    """Whole dollars; cents where they matter."""
    return f"${amount:,.0f}" if amount >= 1000 else f"${amount:,.2f}"


def scientific(value: float) -> str:
    """Four digits and a power of ten."""
    return f"{value:.3e}"


def optional(value: float | None, places: int = 0) -> str:
    """A number, or a dash where there is none."""
    return NONE if value is None else f"{value:,.{places}f}"


def length_source(source: str | None) -> str:
    """Who says how long a sequence is: whoever gave it, or a field of the config."""
    return "given" if source == "given" else f"from {source}"


# --- Readable: three digits and a unit ---------------------------------------------------------------------------


def three_digits(value: float) -> str:
    """1.8273 -> 1.83, 182.73 -> 183, 18273 -> 18,273; a number that has fewer digits keeps to them: 2.5, 15."""
    if not value:
        return "0"
    rounded = float(f"{value:.3g}") if value < 1000 else float(round(value))
    text = f"{rounded:,.{max(0, 2 - floor(log10(rounded)))}f}"
    return text.rstrip("0").rstrip(".") if rounded == value and "." in text else text


def readable(value: float, units: tuple[tuple[int, str], ...] = COUNT_UNITS) -> str:
    """6738415616 -> 6.74 B; what is smaller than every unit has none."""
    rounded = float(f"{value:.3g}")
    for power, unit in units:
        if rounded >= 10**power:
            return f"{three_digits(value / 10**power)} {unit}"
    return three_digits(value)


def readable_dollars(amount: float) -> str:
    """$86.1 M; below a million, dollars."""
    return f"${readable(amount)}" if amount >= 10**6 else dollars(amount)


def readable_range(low: float, high: float, prefix: str = "") -> str:
    """22.1 to 36.9 million in the unit of the larger, with a dash between; one number where both read alike."""
    power, unit = next(((power, f" {unit}") for power, unit in COUNT_UNITS if high >= 10**power), (0, ""))
    ends = [three_digits(value / 10**power) for value in (low, high)]
    return f"{prefix}{ends[0] if ends[0] == ends[1] else NONE.join(ends)}{unit}"


def short_percent(part: float) -> str:
    """Three digits at most: 0.4 -> 40 %, 0.4554 -> 45.5 %."""
    return f"{100 * part:.3g} %"


def gib(bytes_: int) -> str:
    """Beside what a GPU has: in 2^30 bytes."""
    return f"{bytes_ / 2**30:,.1f} GiB"


class Bytes:
    """How bytes are printed beside each other: in the unit of the largest, whole or with so many decimals."""

    def __init__(self, largest: int) -> None:
        self.power, self.unit = next(
            ((power, unit) for power, unit in BYTE_UNITS if largest >= 10**power // 2), BYTE_UNITS[-1]
        )
        size = largest / 10**self.power
        self.places = 0 if size >= 1000 or not self.power else 1 if size >= 10 else 3

    def number(self, value: int) -> str:
        """Without the unit; what is there but rounds to nothing is not called 0."""
        smallest = 10.0**-self.places
        size = value / 10**self.power
        return f"< {smallest:g}" if 0 < size < smallest / 2 else f"{size:,.{self.places}f}"

    def __call__(self, value: int) -> str:
        """With the unit."""
        return f"{self.number(value)} {self.unit}"
