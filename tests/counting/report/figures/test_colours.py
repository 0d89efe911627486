"""Colours: one look for each thing, told apart by colour-blind readers and without colour."""

from itertools import combinations

import pytest
from matplotlib.colors import to_rgb

from counting.counts import COMPONENTS
from counting.report.figures.drawing.colours import COMPONENT_LOOKS, MEMORY_LOOKS, SERIES, Look
from counting.step.phase import PARTS

# Okabe and Ito 2008, figure 16, and greys.
SAFE = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#8C8C8C", "#D9D9D9"}
TABLES = [COMPONENT_LOOKS, MEMORY_LOOKS]


def luminance(colour: str) -> float:
    """Relative luminance of sRGB (IEC 61966-2-1): 0 is black, 1 is white."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_component_and_part_has_a_look() -> None:
    assert list(COMPONENT_LOOKS) == [*COMPONENTS, "mtp"]
    assert tuple(MEMORY_LOOKS) == PARTS


@pytest.mark.parametrize("looks", TABLES)
def test_colours_are_safe_and_differ(looks: dict[str, Look]) -> None:
    assert {look.colour for look in looks.values()} <= SAFE
    assert len({(look.colour, look.hatch) for look in looks.values()}) == len(looks)


@pytest.mark.parametrize("looks", TABLES)
def test_areas_differ_without_colour(looks: dict[str, Look]) -> None:
    """By a factor of 1.2 in luminance at least, or by hatch."""
    for one, other in combinations(looks.values(), 2):
        bright, dark = sorted((luminance(one.colour), luminance(other.colour)), reverse=True)
        assert one.hatch != other.hatch or (bright + 0.05) / (dark + 0.05) > 1.2, (one.name, other.name)


@pytest.mark.parametrize("looks", TABLES)
def test_numbers_are_readable_on_their_areas(looks: dict[str, Look]) -> None:
    """A contrast of 4.5 (WCAG 2.2, 1.4.3) to black or white text, or of 3 for what stands on a patch of its colour."""
    for look in looks.values():
        of_text = 0.0103 if look.light else 1.0  # of #1A1A1A and white
        bright, dark = sorted((luminance(look.colour), of_text), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) > 3, look.name


def test_lines_differ_without_colour() -> None:
    assert len({str(look.line) for look in SERIES}) == len({look.marker for look in SERIES}) == len(SERIES)
