"""The width of the output."""

import os
import sys

WIDTH_OF_A_PIPE = 100  # columns, if the output is no terminal and COLUMNS is not set
NARROWEST = 40


def output_width() -> int:
    """The width in columns: of the terminal on stdout, else COLUMNS, else `WIDTH_OF_A_PIPE`; at least `NARROWEST`."""
    width = 0
    try:
        if sys.stdout.isatty():
            width = os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):  # stdout is closed or not a file
        pass
    if not width:
        given = os.environ.get("COLUMNS", "")
        width = int(given) if given.isascii() and given.isdigit() else 0
    return max(width or WIDTH_OF_A_PIPE, NARROWEST)
