"""How a ratio of published models changes with their size: what a design aims at, and the range that it keeps to."""

from collections.abc import Sequence
from math import exp, log

import msgspec

WEIGHED_DEVIATION = 0.1  # a deviation of 10 % from what is aimed at counts 1 in a penalty


class Trend(msgspec.Struct, frozen=True, kw_only=True):
    """A ratio at one size, and its range over the published models."""

    ideal: float
    lowest: float
    highest: float

    def admits(self, value: float) -> bool:
        """Whether `value` is within the range of the published models."""
        return self.lowest <= value <= self.highest

    def words(self, digits: int) -> str:
        """The trend in words, for the rules of a design."""
        return (
            f"aims at {self.ideal:.{digits}f}, within {self.lowest:.{digits}f} to {self.highest:.{digits}f} of the "
            "published models"
        )

    def penalty(self, value: float) -> float:
        """The relative deviation of `value` from the ideal, in units of 10 %: |ln(value / ideal)| / ln 1.1."""
        return abs(log(value / self.ideal)) / log(1 + WEIGHED_DEVIATION)


def trend_at(size: int, points: Sequence[tuple[int, float]], published: Sequence[float] = ()) -> Trend:
    """The trend at `size` through `points`, (size, ratio) of published models in the order of their sizes.

    Between two points the ratio is a power of the size: ln(ratio) is linear in ln(size). Beyond the ends it is
    constant. `published` are the ratios of further models, which only widen the range.
    """
    ratios = [ratio for _, ratio in points]
    extremes = (*ratios, *published)
    return Trend(ideal=_interpolated(size, points), lowest=min(extremes), highest=max(extremes))


def _interpolated(size: int, points: Sequence[tuple[int, float]]) -> float:
    """The ratio at `size`; that of a point itself is returned exactly."""
    below = max((point for point in points if point[0] <= size), default=points[0])
    above = min((point for point in points if point[0] >= size), default=points[-1])
    if below[0] >= above[0]:
        return below[1]
    share = log(size / below[0]) / log(above[0] / below[0])
    return exp((1 - share) * log(below[1]) + share * log(above[1]))
