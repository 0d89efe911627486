"""Numbers as the sentences of a fit have them."""

from collections.abc import Sequence

_MOST_LINES = 6


def shown_flops(flops: float) -> str:
    """FLOPs with three digits, as "5.76e+23 FLOPs"."""
    return f"{flops:.3g} FLOPs"


def listed_lines(lines: Sequence[int]) -> str:
    """Lines of a file, as "lines 3, 8 and 12"; of many the first ones."""
    if len(lines) == 1:
        return f"line {lines[0]}"
    shown = [str(line) for line in lines[:_MOST_LINES]]
    if len(lines) > _MOST_LINES:
        return f"lines {', '.join(shown)} and {len(lines) - _MOST_LINES} more"
    return f"lines {', '.join(shown[:-1])} and {shown[-1]}"
