"""The files that a command writes beside its answer."""

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from counting.command.flags.laws import law_files
from counting.command.flags.names import VERSION
from counting.command.output_file import (
    files_of_config,
    refuse_shared_files,
    refuse_unwritable,
    refuse_unwritable_folder,
    write_together,
)
from counting.command.progress import Progress
from torch_models.errors import UserError, show_value

if TYPE_CHECKING:
    from counting.records import Tidy
    from counting.report import Results

FILES = ("design", "trace", "trace_memory", "html")  # the flags that name one file to write
_OF_A_PAGE = (".html", ".htm")


def check_outputs(options: argparse.Namespace) -> None:
    """Check every file that is to be written before anything is measured.

    Raises UserError if it is also one that is read, is written twice, or cannot be written.
    """
    written: dict[str, str | None] = {f"--{flag}": getattr(options, flag) for flag in FILES}
    if options.figure is not None:
        from counting.command.jobs.figures import figures_of, files_of_figures

        written |= files_of_figures(options.figure, figures_of(options))
    configs = [file for config in options.model_config or () for file in files_of_config(config)]
    refuse_shared_files(
        {
            **written,
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
    if options.html is not None and not options.html.lower().endswith(_OF_A_PAGE):
        rule = "must end in .html or .htm, by which a browser knows a page"
        raise UserError(f"--html = {show_value(options.html)}: {rule}")
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


def write_outputs(options: argparse.Namespace, results: "Results", typed: Sequence[str], progress: Progress) -> None:
    """Write what comes from the results of the whole command, whose arguments were `typed`.

    All of them are written, or none.
    """
    files: dict[str, str | bytes] = {}
    if results.design is not None:
        files[options.design] = results.design.config_json()
    if options.csv is not None:
        from counting.report.export.comma_separated import csv_files

        rows = csv_files(results, proof=options.proof)
        files |= {os.path.join(options.csv, name): text for name, text in rows.items()}
    if options.figure is not None or options.html is not None:
        progress.show("drawing figures ...")
    if options.figure is not None:
        from counting.command.jobs.figures import drawn_figures, figures_of

        files |= dict(drawn_figures(figures_of(options), results, options.figure_size))
    if options.html is not None:
        files[options.html] = _page(options, results, typed)
    write_together(files, folder=options.csv, overwrite=options.force)


def check_rows_and_output(
    options: argparse.Namespace,
    name: str,
    read: Mapping[str, str | None],
    figures: Mapping[str, str | None] | None = None,
) -> None:
    """Check early, for a command with --output, that file, the `figures`, and the file of rows with this name in --csv.

    `read` and `figures` are the names of files, by what names them. Raises UserError as `check_outputs`.
    """
    if options.csv == "":
        raise UserError("--csv '': must name a folder")
    rows = None if options.csv is None else os.path.join(options.csv, name)
    written = {"--output": options.output, **(figures or {})}
    refuse_shared_files({**written, "--csv": rows}, read)
    for path in written.values():
        refuse_unwritable(path, overwrite=options.force)
    if options.csv is not None:
        refuse_unwritable_folder(options.csv, [name], overwrite=options.force)


def write_rows_and_output(
    options: argparse.Namespace,
    results: Mapping[str, "Tidy"],
    output: str | bytes,
    figures: Sequence[tuple[str, bytes]] = (),
) -> None:
    """Write the content of --output, `figures` and, with --csv, the rows of each result under its name; or nothing."""
    files: dict[str, str | bytes] = {options.output: output, **dict(figures)}
    if options.csv is not None:
        from counting.report.export.comma_separated import csv_text

        files |= {os.path.join(options.csv, name): csv_text(of.to_records()) for name, of in results.items()}
    write_together(files, folder=options.csv, overwrite=options.force)


def _page(options: argparse.Namespace, results: "Results", typed: Sequence[str]) -> str:
    import shlex

    from counting.command.help import PROGRAM
    from counting.command.plan_file import without_files
    from counting.report.page import Making, html_page

    making = Making(
        command=f"{PROGRAM} {shlex.join(typed)}",
        program=f"model-training-cost-analysis {VERSION}",
        plan=without_files(results.plan or {}),
    )
    return html_page(results, options.design, making)
