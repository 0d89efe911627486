"""The sub-command: its flags, its work, its output file and its first screen."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from counting.command.amounts import parse_whole_number
from counting.command.jobs.figures import drawn_figures, figure_files, files_of_figures
from counting.command.jobs.outputs import check_rows_and_output, write_rows_and_output
from counting.command.progress import Progress
from counting.command.sub_command import SubCommandParser
from counting.cost.fit import FittedLaw, fit_law, read_runs
from counting.cost.fit.columns import FITTED_QUANTITIES
from counting.cost.fit.fitting import FEWEST_RESAMPLES, LARGER_BUDGET, MOST_RESAMPLES, RESAMPLES
from counting.cost.fit.table import RunsFile
from counting.cost.scaling_laws import LAWS
from counting.cost.scaling_laws.allocation import allocation_laws
from counting.cost.scaling_laws.law import LONGEST_NAME
from counting.cost.scaling_laws.law_file import law_as_json
from torch_models.errors import ArgumentError, UserError, show_name

_DEFAULT_NAME = "fitted"
_ROWS = "fit.csv"
_FIGURE = "fit"


def fit_parser() -> argparse.ArgumentParser:
    """The parser of the flags of `fit`."""
    parser = SubCommandParser(
        "fit",
        "Fit a scaling law to training runs, and write it as a file for --scaling_law:\n\n"
        "    fit runs.csv --output law.json\n"
        "    fit runs.csv --output law.json --columns parameters=n_params,tokens=seen\n"
        "    fit runs.csv --output law.json --training_flops 1e21,5.76e23",
    )
    parser.add_argument(
        "runs",
        nargs="?",
        metavar="RUNS",
        help="training runs, one a line: a CSV file with the columns loss and two or all of parameters (N, params), "
        "tokens (D) and training_flops (C, flops); the third follows from C = 6 N D",
    )
    parser.add_argument(
        "--columns", metavar="NAMES", help="what columns of other names are, as parameters=n_params,tokens=seen"
    )
    parser.add_argument("--output", metavar="FILE", help="the law's file to write; its name is the law's")
    parser.add_argument(
        "--training_flops",
        metavar="FLOPS",
        help="budgets to answer, as the runs count them: 1e21,5.76e23; default the largest of the runs and "
        f"{LARGER_BUDGET} times it",
    )
    parser.add_argument(
        "--resamples",
        metavar="NUMBER",
        help=f"of the runs, for the intervals: {FEWEST_RESAMPLES} to {MOST_RESAMPLES}; default {RESAMPLES}",
    )
    parser.add_argument("--seed", metavar="NUMBER", help="of the resamples; default 0")
    parser.add_argument("--csv", metavar="FOLDER", help=f"write all numbers as rows with units, as {_ROWS}")
    parser.add_argument(
        "--figure",
        metavar="FILE",
        nargs="+",
        action="extend",
        help="draw runs, law and residuals to FILE.svg, .png or .pdf; needs matplotlib",
    )
    parser.add_argument(
        "--figure_size",
        choices=("slide", "column"),
        help="a slide (default; 1600 x 900 pixels) or a column of a paper (3.3 inches wide)",
    )
    parser.add_argument("--force", action="store_true", help="let --output, --csv and --figure replace a file")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    return parser


def fit_command(arguments: Sequence[str]) -> None:
    """Run `fit`; raises UserError for wrong input. The file is written whole, after everything is worked out."""
    options = fit_parser().parse_args(arguments)
    if options.runs is None:
        raise UserError("fit needs a file of training runs: fit runs.csv --output law.json")
    if options.output is None:
        raise UserError("fit needs --output: name the file to write, as --output law.json")
    for flag, name in (("RUNS", options.runs), ("--output", options.output)):
        if name == "":
            raise UserError(f"{flag} '': must name a file")
    if options.figure_size is not None and options.figure is None:
        raise UserError("--figure_size needs --figure")
    figures = figure_files(options.figure, (_FIGURE,), _FIGURE) if options.figure else ()
    check_rows_and_output(options, _ROWS, {"fit": options.runs}, files_of_figures(options.figure, figures))
    progress = Progress()
    try:
        fitted = _fitted(options, progress)
    finally:
        progress.erase()
    from counting.report import Fitted, fit_document, print_fit

    result = Fitted(output=options.output, fitted=fitted)
    drawn = drawn_figures(figures, result, options.figure_size)
    write_rows_and_output(options, {_ROWS: fitted}, law_as_json(fitted.law), drawn)
    for warning in fitted.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if options.json:
        print(fit_document(result))
    else:
        print_fit(result)


def _fitted(options: argparse.Namespace, progress: Progress) -> FittedLaw:
    columns = _columns(options.columns)
    training_flops = _flops(options.training_flops)
    resamples = RESAMPLES if options.resamples is None else parse_whole_number(options.resamples, "resamples")
    seed = 0 if options.seed is None else parse_whole_number(options.seed, "seed")
    file = _read(options.runs, columns)
    shown = show_name(options.runs)
    try:
        return fit_law(
            file.runs,
            name=_name(options.output),
            source=f"fitted to the runs of {show_name(Path(options.runs).name)}",
            training_flops=training_flops,
            resamples=resamples,
            seed=seed,
            columns=file.columns,
            derived=file.derived,
            show=progress.show,
        )
    except ArgumentError:
        raise
    except UserError as error:
        raise UserError(f"{shown}: {error}") from None


def _read(path: str, columns: Mapping[str, str]) -> RunsFile:
    """The runs of the file; an error that says to name columns names the flag."""
    try:
        return read_runs(path, columns)
    except ArgumentError:
        raise
    except UserError as error:
        raise UserError(str(error).replace(", as columns ", ", as --columns ")) from None


def _columns(text: str | None) -> dict[str, str]:
    """What a number is -> the name of its column, from "parameters=n_params,tokens=seen"."""
    columns: dict[str, str] = {}
    for part in text.split(",") if text is not None else ():
        quantity, equals, name = (each.strip() for each in part.partition("="))
        if not equals or not name or quantity not in FITTED_QUANTITIES:
            rule = (
                f"must say which column is which, of {', '.join(FITTED_QUANTITIES)}, as parameters=n_params,tokens=seen"
            )
            raise ArgumentError("columns", text, rule)
        if quantity in columns:
            raise ArgumentError("columns", text, f"names {quantity} twice")
        if name in columns.values():
            raise ArgumentError("columns", text, f"gives the column {show_name(name)} twice")
        columns[quantity] = name
    return columns


def _flops(text: str | None) -> list[float]:
    if text is None:
        return []
    numbers = []
    for part in text.split(","):
        try:
            if not part.isascii() or "_" in part:
                raise ValueError
            numbers.append(float(part))
        except ValueError:
            raise ArgumentError("training_flops", text, "must be FLOPs, as 5.76e23 or 1e21,1e22") from None
    return numbers


def _name(output: str) -> str:
    """The law's name: that of its file, less what the name of a law may not have and the ending."""
    stem = "".join(character for character in Path(output).stem if character.isprintable() and character != ",")
    name = stem.strip()[:LONGEST_NAME].strip()
    published = {law.name for law in LAWS} | {law.name for law in allocation_laws()}
    return name if name and name.lower() not in published else _DEFAULT_NAME
