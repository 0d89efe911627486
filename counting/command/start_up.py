"""The command as a process: start, output streams, exit."""

import contextlib
import gc
import io
import os
import sys
from typing import NoReturn

from counting.command.main import EXIT_INTERRUPTED, EXIT_USER_ERROR, main
from counting.command.missing import missing_package_line


def command() -> NoReturn:
    """Run `main` and exit with `os._exit`, because the clean-up of torch's modules takes longer than most analyses.

    Garbage collection is off: it would take time and free little memory.
    """
    gc.disable()
    _write_what_the_terminal_can()
    try:
        status = main()
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # a reader such as head closed the pipe, or --help was printed
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
    """Print characters that the output's encoding lacks as question marks; discard output to a closed stream."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
