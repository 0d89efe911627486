"""The command as a process: how it starts, what it does with its output, and how it leaves."""

import contextlib
import gc
import io
import os
import sys
from typing import NoReturn

from counting.command.main import EXIT_INTERRUPTED, EXIT_USER_ERROR, main
from counting.command.missing import missing_package_line


def command() -> NoReturn:
    """Run `main` and leave at once: taking torch's modules apart would take longer than most analyses.

    Nor are cycles collected on the way, which would take time and find little.
    """
    gc.disable()
    _write_what_the_terminal_can()
    try:
        status = main()
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # a reader such as head has seen enough, or --help has been printed
        status = 0
    except ModuleNotFoundError as error:
        line = missing_package_line(error)
        if line is None:
            raise
        print(line, file=sys.stderr)
        status = EXIT_USER_ERROR
    except OSError as error:
        print(f"error: the output cannot be written: {error.strerror or error}", file=sys.stderr)
        status = EXIT_USER_ERROR
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _write_what_the_terminal_can() -> None:
    """A character that the output's encoding lacks becomes a question mark; a closed output swallows what it gets."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
