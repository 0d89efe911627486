"""The sub-command: its flags, its work, its output file and its first screen."""

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from counting.command.jobs.outputs import check_rows_and_output, write_rows_and_output
from counting.command.output_file import refuse_shared_files
from counting.command.progress import Progress
from counting.command.sub_command import SubCommandParser
from counting.cost.cluster import Cluster, read_cluster
from counting.cost.hardware import read_json_file
from torch_models.errors import ArgumentError, ConfigError, UserError, show_name

if TYPE_CHECKING:
    from counting.report import Calibrated

_DEFAULT_MINUTES = 2.0
_FEWEST_MINUTES, _MOST_MINUTES = 0.01, 120.0
_ROWS = "calibration.csv"


def calibrate_parser() -> argparse.ArgumentParser:
    """The parser of the flags of `calibrate`."""
    parser = SubCommandParser(
        "calibrate",
        "Write a file for --cluster, from steps that you have measured or from this machine:\n\n"
        "    calibrate rows.csv --output cluster.json\n"
        "    calibrate --measure --output cluster.json\n"
        "    torchrun --nproc_per_node 8 model_training_cost_analysis.py \\\n"
        "      calibrate --measure --output cluster.json",
    )
    parser.add_argument(
        "rows",
        nargs="?",
        metavar="ROWS",
        help="measured steps, three or more: a CSV file with the columns model_config, seq_len, gpu, num_gpus, layout, "
        "micro_batch_size, micro_batches, recompute, execution, seconds; and precision, optimizer, loss_chunk, "
        "clip_gradients, power_watts if you like",
    )
    parser.add_argument(
        "--measure", action="store_true", help="measure products, attention, copies and, under torchrun, collectives"
    )
    parser.add_argument(
        "--minutes", metavar="MINUTES", help=f"of measuring, without the collectives; default {_DEFAULT_MINUTES:g}"
    )
    parser.add_argument("--output", metavar="FILE", help="the cluster's file to write")
    parser.add_argument("--cluster", metavar="FILE", help="a cluster's file to start from; what it has is kept")
    parser.add_argument("--csv", metavar="FOLDER", help=f"write all numbers as rows with units, as {_ROWS}")
    parser.add_argument("--force", action="store_true", help="let --output and --csv replace a file")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    return parser


def calibrate_command(arguments: Sequence[str]) -> None:
    """Run `calibrate`; raises UserError for wrong input. Under torchrun, rank 0 alone prints and writes."""
    options = calibrate_parser().parse_args(arguments)
    if options.output is None:
        raise UserError("calibrate needs --output: name the file to write, as --output cluster.json")
    for flag, name in (("ROWS", options.rows), ("--output", options.output), ("--cluster", options.cluster)):
        if name == "":
            raise UserError(f"{flag} '': must name a file")
    if options.measure == (options.rows is not None):
        raise UserError(
            "calibrate takes a file of measured steps or --measure, one of the two: the file that one of them writes "
            "is given to the other with --cluster"
        )
    if options.minutes is not None and not options.measure:
        raise UserError("--minutes needs --measure")
    progress = Progress()
    try:
        calibrated = _measured(options, progress) if options.measure else _fitted(options, progress)
    finally:
        progress.erase()
    if calibrated is None:  # another rank than the first
        return
    from counting.calibration.cluster_file import as_text
    from counting.report import calibration_document, print_calibration

    found = calibrated.steps or calibrated.machine
    write_rows_and_output(options, {_ROWS: found} if found else {}, as_text(calibrated.document))
    if options.json:
        print(calibration_document(calibrated))
    else:
        print_calibration(calibrated)


def _start(options: argparse.Namespace) -> tuple[Cluster | None, dict[str, Any]]:
    """The cluster of --cluster, if it is given, and the fields of its file, which --output may replace."""
    check_rows_and_output(options, _ROWS, {"calibrate": options.rows})
    if options.cluster is None:
        return None, {}
    cluster = read_cluster(options.cluster)
    fields: dict[str, Any] = read_json_file(options.cluster, show_name(options.cluster), "a file of a cluster")
    return cluster, fields


def _fitted(options: argparse.Namespace, progress: Progress) -> "Calibrated":
    """The scale of the rows."""
    from counting.calibration.cluster_file import with_scale
    from counting.calibration.steps import calibrate_cluster
    from counting.command.calibrate.rows import by_column, read_rows
    from counting.report import Calibrated

    cluster, known = _start(options)
    rows = read_rows(options.rows, cluster.gpu if cluster else None)
    refuse_shared_files({"--output": options.output}, {show_name(options.rows): rows.configs})
    try:
        steps = calibrate_cluster(rows.steps, cluster or Cluster(gpu=rows.gpu), progress.show)
    except ConfigError as error:
        raise by_column(error) from None
    except UserError as error:
        raise _of_file(error, options.rows) from None
    document = with_scale(known or {"gpu": rows.gpu.name}, steps.calibration)
    return Calibrated(output=options.output, document=document, steps=steps)


def _of_file(error: UserError, path: str) -> UserError:
    """The error with the file's name, where no row has it already."""
    shown = show_name(path)
    return error if str(error).startswith(f"{shown}: ") else UserError(f"{shown}: {error}")


def _measured(options: argparse.Namespace, progress: Progress) -> "Calibrated | None":
    """The rates of this machine; None on other ranks than the first."""
    minutes = _DEFAULT_MINUTES if options.minutes is None else _minutes(options.minutes)
    from counting.calibration.cluster_file import OF_OTHER_RATES, with_machine
    from counting.calibration.machine import device_here, joined_ranks, measure_machine
    from counting.report import Calibrated

    with joined_ranks(device_here()) as ranks:
        start = ranks.shared(_tried(lambda: _start(options)) if ranks.rank == 0 else None)
        if isinstance(start, UserError):
            if ranks.rank:
                return None  # the first rank says it
            raise start
        show = progress.show if ranks.rank == 0 else _silent
        found = measure_machine(ranks, 60 * minutes, show)
        if ranks.rank:
            return None
    cluster, known = start
    document = with_machine(known, found, cluster.gpu if cluster else None)
    left_out = tuple(field for field in OF_OTHER_RATES if field in known)
    return Calibrated(output=options.output, document=document, machine=found, left_out=left_out)


def _silent(text: str) -> None:
    """Progress of ranks that print nothing."""


def _tried(function: Callable[[], Any]) -> Any:
    """What the function returns, or the UserError that it raises, for all ranks to end together."""
    try:
        return function()
    except UserError as error:
        return UserError(str(error))


def _minutes(text: str) -> float:
    try:
        minutes = float(text) if text.isascii() and "_" not in text else 0.0
    except ValueError:
        minutes = 0.0
    if not _FEWEST_MINUTES <= minutes <= _MOST_MINUTES:
        raise ArgumentError("--minutes", text, f"must be a number from {_FEWEST_MINUTES:g} to {_MOST_MINUTES:g}")
    return minutes
