"""The command: flags in, text or JSON out, and an exit status."""

import argparse
import sys
from collections.abc import Sequence

from counting.command.flags import read_flags
from counting.command.hints import error_line
from counting.command.jobs.outputs import write_outputs
from counting.command.jobs.results import results_of
from counting.command.lengths import length_warnings
from counting.command.progress import Progress
from counting.reconcile import DisagreementError
from torch_models.errors import UserError

CALIBRATE, FIT = "calibrate", "fit"  # the sub-commands
EXIT_USER_ERROR = 2
EXIT_DISAGREEMENT = 3
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status: 0, 2 for an error of the user, 3 if two witnesses differ."""
    options = argparse.Namespace(plan=None, from_plan=())
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments and arguments[0] == CALIBRATE:
            _calibrate(arguments[1:])
            return 0
        if arguments and arguments[0] == FIT:
            _fit(arguments[1:])
            return 0
        options = read_flags(arguments)
        _run(options, arguments)
    except UserError as error:
        print(error_line(error, options.plan, options.from_plan), file=sys.stderr)
        return EXIT_USER_ERROR
    except DisagreementError as error:
        print(f"error: witnesses disagree\n{error}", file=sys.stderr)
        return EXIT_DISAGREEMENT
    return 0


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Work out and print the results. Files are written first, so that nothing is printed if that fails."""
    progress = Progress()
    try:
        results = results_of(options, progress)
        write_outputs(options, results, arguments, progress)
    finally:
        progress.erase()
    from counting.report import json_document, print_results

    for warning in length_warnings(results.analyses):
        print(f"warning: {warning}", file=sys.stderr)
    if options.json:
        print(json_document(results))
    elif options.markdown:
        from counting.report.export.markdown import markdown_text

        print(markdown_text(results, options.design, proof=options.proof))
    else:
        print_results(results, options.design, details=options.details, proof=options.proof)


def _calibrate(arguments: Sequence[str]) -> None:
    from counting.command.calibrate.command import calibrate_command

    calibrate_command(arguments)


def _fit(arguments: Sequence[str]) -> None:
    from counting.command.fit.command import fit_command

    fit_command(arguments)
