"""Progress of long work, in one line on stderr; nothing is printed if stderr is not a terminal."""

import shutil
import sys


class Progress:
    """A line that each call of `show` overwrites and `erase` removes."""

    def __init__(self) -> None:
        self._shown = 0  # characters in the current line

    def show(self, text: str) -> None:
        """Print `text` as the current progress, cut to the width of the terminal."""
        if sys.stderr is None or not sys.stderr.isatty():
            return
        text = text[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write("\r" + text.ljust(self._shown))
        sys.stderr.flush()
        self._shown = len(text)

    def erase(self) -> None:
        """Remove the line."""
        if self._shown:
            sys.stderr.write("\r" + " " * self._shown + "\r")
            sys.stderr.flush()
            self._shown = 0
