"""The files that a command writes beside its answer."""

import argparse
import os
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from counting.command.flags.laws import law_files
from counting.command.flags.names import VERSION
from counting.command.help import PROGRAM
from counting.command.output_file import (
    files_of_config,
    refuse_shared_files,
    refuse_unwritable,
    refuse_unwritable_folder,
    write_folder,
    write_whole,
)

if TYPE_CHECKING:
    from counting.report import Results

FILES = ("design", "trace", "trace_memory", "html")  # the flags that name one file to write


def check_outputs(options: argparse.Namespace) -> None:
    """Check every file that is to be written before anything is measured.

    Raises UserError if it is also one that is read, is written twice, or cannot be written.
    """
    written = {flag: getattr(options, flag) for flag in FILES}
    configs = [file for config in options.model_config or () for file in files_of_config(config)]
    refuse_shared_files(
        {
            **{f"--{flag}": path for flag, path in written.items()},
            "--csv": [os.path.join(options.csv, name) for name in csv_names(options)] if options.csv else None,
        },
        {
            "--model_config": configs,
            "--plan": options.plan,
            "--cluster": options.cluster,
            "--gpu_file": options.gpu_file,
            "--scaling_law": law_files(options.scaling_law),
        },
    )
    for path in written.values():
        if path is not None:
            refuse_unwritable(path, overwrite=options.force)
    if options.csv is not None:
        refuse_unwritable_folder(options.csv, csv_names(options), overwrite=options.force)


def csv_names(options: argparse.Namespace) -> list[str]:
    """The names of the files that --csv writes: one for each kind of result that the flags ask for."""
    asked = {
        "analyses": options.model_config,
        "runs": options.tokens is not None and not options.compare,
        "comparison": options.compare,
        "budget": options.training_budget is not None,
        "published": options.published is not None,
        "claim": options.claim,
        "witnesses": options.proof,
    }
    return [f"{name}.csv" for name, wanted in asked.items() if wanted]


def write_outputs(options: argparse.Namespace, results: "Results", typed: Sequence[str]) -> None:
    """Write what comes from the results of the whole command, whose arguments were `typed`."""
    page = None if options.html is None else _page(options, results, typed)
    if results.design is not None:
        write_whole(options.design, results.design.config_json(), overwrite=options.force)
    if options.csv is not None:
        from counting.report.export.comma_separated import csv_files

        write_folder(options.csv, csv_files(results, proof=options.proof), overwrite=options.force)
    if page is not None:
        write_whole(options.html, page, overwrite=options.force)


def _page(options: argparse.Namespace, results: "Results", typed: Sequence[str]) -> str:
    from counting.report.page import Making, html_page

    making = Making(f"{PROGRAM} {shlex.join(typed)}", f"model-training-cost-analysis {VERSION}")
    return html_page(results, options.design, making)
