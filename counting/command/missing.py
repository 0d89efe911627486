"""The error message for a package that is not installed. This module imports the standard library only."""

import importlib.util
import sys
from typing import NoReturn

EXIT_WITHOUT_PACKAGES = 2


def leave_without(error: ModuleNotFoundError) -> NoReturn:
    """Print which package is missing and exit with 2; raises `error` again if it has another cause."""
    line = missing_package_line(error)
    if line is None:
        raise error
    print(line, file=sys.stderr)
    sys.exit(EXIT_WITHOUT_PACKAGES)


def missing_package_line(error: ModuleNotFoundError) -> str | None:
    """One line that names the missing package and two ways to install it; None if the error has another cause."""
    package = (error.name or "").partition(".")[0]
    if not package or importlib.util.find_spec(package) is not None:
        return None
    return (
        f"error: {package} is not installed in {sys.executable}: run `make run`, then `. .venv/bin/activate`; "
        "or `pip install -c constraints.txt .`"
    )
