"""Flags of files that are written beside the answer."""

import argparse


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of files that are written."""
    outputs = parser.add_argument_group("to take away")
    outputs.add_argument(
        "--figure",
        metavar="FIGURE",
        nargs="+",
        action="extend",
        help="draw FILE.svg, .png or .pdf: KIND=FILE, or FILE alone, which takes what fits the job; KIND: comparison, "
        "law, bill, ranks, memory, parameters, flops (the figure of a fitted law: fit --help); needs matplotlib",
    )
    outputs.add_argument(
        "--figure_size",
        choices=("slide", "column"),
        help="of figures: a slide (default; 1600 x 900 pixels) or a column of a paper (3.3 inches wide)",
    )
    outputs.add_argument(
        "--csv",
        metavar="FOLDER",
        help="write all numbers as rows with units and conventions, a CSV file a kind of result",
    )
    outputs.add_argument(
        "--trace_memory", metavar="FILE", help="write the step's memory snapshot, for the viewer at pytorch.org"
    )
    outputs.add_argument(
        "--html", metavar="FILE", help="write one page of the answer, all tables and figures, to read, print or send"
    )
    outputs.add_argument("--trace", metavar="FILE", help="write a step over time, for the viewer at ui.perfetto.dev")
    outputs.add_argument("--force", action="store_true", help="let the flags that write a file replace it")
