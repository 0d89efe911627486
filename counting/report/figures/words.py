"""Words that several figures share."""

from collections.abc import Sequence
from typing import NamedTuple

from counting.report.format import BYTE_UNITS, readable
from counting.step.fit import Fit
from torch_models.fields.bundled import published_name
from torch_models.layout import Layout

FLOP_WORDS = "Matrix products only, a multiply-add is 2 FLOPs; attention by the full square."
PEAK_WORDS = "MFU is against the dense peak of the 16-bit training dtype; model FLOPs, without recomputation."


LONGEST_TITLE = 32


def model_title(name: str) -> str:
    """The name of a model in a figure: that under which a bundled config is published, else its own; a long one is cut.

    It is one line: what breaks lines is a space. A legend leaves out names that begin with an underscore, so
    there is a space of no width before it.
    """
    one_line = " ".join(published_name(name).split())
    title = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in one_line)
    title = title if len(title) <= LONGEST_TITLE else f"{title[: LONGEST_TITLE - 1]}…"
    return f"\u200b{title}" if title.startswith("_") else title


def joined_titles(titles: Sequence[str]) -> str:
    """One title, two joined by "and", or the number of models."""
    return f"{len(titles)} models" if len(titles) > 2 else " and ".join(titles)


class ByteUnit(NamedTuple):
    """A unit of memory, and its symbol."""

    bytes: float
    symbol: str

    def text(self, size: float) -> str:
        """The size in this unit."""
        return f"{readable(size / self.bytes, ())} {self.symbol}"


def byte_unit(largest: int, *, compared: bool) -> ByteUnit:
    """The unit for sizes up to `largest`: GiB where they are compared with a GPU's memory."""
    if compared:
        return ByteUnit(2.0**30, "GiB")
    power, symbol = next(each for each in BYTE_UNITS if largest >= 10 ** each[0] or not each[0])
    return ByteUnit(10.0**power, symbol)


def layout_title(layout: Layout | None) -> str:
    """The axes above 1 with the ranks of each."""
    assert layout is not None
    sizes = {
        "dp": layout.replicas,
        "fsdp": layout.fsdp,
        "tp": layout.tp,
        "cp": layout.cp,
        "pp": layout.pp,
        "ep": layout.ep,
    }
    return " · ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or "one rank"


MOST_FITS = 3


def needed_of_gpus(fits: Sequence[Fit]) -> str:
    """What the first GPUs have and the step needs of it; empty without GPUs."""
    unit = byte_unit(0, compared=True)
    said = [
        f"{unit.text(fit.needed_bytes)} of {readable(fit.capacity_bytes / unit.bytes, ())} on {fit.gpu} "
        f"({'fits' if fit.fits else 'does not fit'})"
        for fit in fits[:MOST_FITS]
    ]
    return f"needs {', '.join(said)}" if said else ""
