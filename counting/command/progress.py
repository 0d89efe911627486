"""What long work is at, in one line on a terminal's stderr; nothing where stderr is no terminal."""

import shutil
import sys


class Progress:
    """A line that is written over, and erased in the end."""

    def __init__(self) -> None:
        self._shown = 0  # characters of the line that stands there

    def show(self, text: str) -> None:
        """Say what the work is at; cut to one line of the terminal."""
        if sys.stderr is None or not sys.stderr.isatty():
            return
        text = text[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write("\r" + text.ljust(self._shown))
        sys.stderr.flush()
        self._shown = len(text)

    def erase(self) -> None:
        """Leave the line as it was before."""
        if self._shown:
            sys.stderr.write("\r" + " " * self._shown + "\r")
            sys.stderr.flush()
            self._shown = 0
