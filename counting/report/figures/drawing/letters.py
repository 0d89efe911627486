"""Text as wide as it is drawn: measured with the font, not by a number of letters."""

import warnings

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path


def width_of(text: str, size: float, weight: str = "normal") -> float:
    """Points from the left to the right end of one line of `text` in the font of the sheet."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size, weight=weight), False)
    return float(width)


def wrapped(text: str, room: float, size: float, weight: str = "normal") -> list[str]:
    """`text` in lines that are not wider than `room` points; a word that is wider is cut."""
    lines, line = list[str](), ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if width_of(longer, size, weight) <= room:
            line = longer
            continue
        if line:
            lines.append(line)
        *whole, line = _pieces(word, room, size, weight)
        lines += whole
    return [*lines, line] if line else lines


def _pieces(word: str, room: float, size: float, weight: str) -> list[str]:
    """The word in pieces that are not wider than `room`, of one letter at least."""
    pieces, piece = list[str](), ""
    for letter in word:
        if piece and width_of(piece + letter, size, weight) > room:
            pieces.append(piece)
            piece = ""
        piece += letter
    return [*pieces, piece]
