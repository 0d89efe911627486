"""Figures of the results: SVG, PNG or PDF of one kind, drawn with matplotlib, which is imported when one is drawn.

A kind has a row in `kinds.py`, its conventions in words in `captions.py`, and its drawing in `drawing/`, which alone
imports matplotlib. No number is worked out here: what is drawn are results, and curves of `counting.cost`.
"""

from counting.report.figures.kinds import (
    FIGURE_FORMATS,
    FIGURE_KINDS,
    FIGURE_SIZES,
    FigureFormat,
    FigureSize,
    kinds_of,
    why_too_many,
    why_too_much,
)
from counting.report.figures.output import caption, check_matplotlib, draw, embedded_svg, why_no_figure

__all__ = [
    "FIGURE_FORMATS",
    "FIGURE_KINDS",
    "FIGURE_SIZES",
    "FigureFormat",
    "FigureSize",
    "caption",
    "check_matplotlib",
    "draw",
    "embedded_svg",
    "kinds_of",
    "why_no_figure",
    "why_too_many",
    "why_too_much",
]
