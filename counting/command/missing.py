"""What is said where a package is not installed. It needs none itself."""

import importlib.util
import sys
from typing import NoReturn

EXIT_WITHOUT_PACKAGES = 2


def leave_without(error: ModuleNotFoundError) -> NoReturn:
    """Say which package is missing and leave; raises the error again where something else is wrong."""
    line = missing_package_line(error)
    if line is None:
        raise error
    print(line, file=sys.stderr)
    sys.exit(EXIT_WITHOUT_PACKAGES)


def missing_package_line(error: ModuleNotFoundError) -> str | None:
    """The package that is not there, and the two ways out, on one line; None where something else is wrong."""
    package = (error.name or "").partition(".")[0]
    if not package or importlib.util.find_spec(package) is not None:
        return None
    return (
        f"error: {package} is not installed in {sys.executable}: give `make run`, then `. .venv/bin/activate`; "
        "or `pip install -c constraints.txt .`"
    )
