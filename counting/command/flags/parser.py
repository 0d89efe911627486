"""The parser of the flags: it joins the groups, typed flags and those of a plan."""

import argparse
import re
from collections.abc import Sequence
from typing import NoReturn

from counting.command.checks import check_flags
from counting.command.flags.machines import add_machine_flags
from counting.command.flags.model import add_model_flags
from counting.command.flags.money import add_budget_flags, add_published_flags, add_run_flags
from counting.command.flags.names import VERSION
from counting.command.flags.outputs import add_output_flags
from counting.command.flags.step import add_rank_flags, add_step_flags
from counting.command.help import job_examples, names_of_flags
from counting.command.plan_file import plan_as_arguments, with_plan
from torch_models.errors import UserError, show_name

SEE_HELP = "; --help lists the flags"


def read_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """The typed flags and those of a plan, with their values still as text; `from_plan` names the flags of the plan.

    Raises `UserError` for unknown flags and for flags that do not go together.
    """
    parser = flags_parser()
    if arguments and not arguments[0].startswith("-"):
        rule = "is not a command; calibrate and fit are, else begin with a flag, as --model_config llama_7b"
        raise UserError(f"{show_name(arguments[0])}: {rule}")
    options = _parse(parser, arguments)
    if options.plan == "":
        raise UserError("--plan '': must name a file")
    if options.plan is None:
        options.from_plan = frozenset()
    else:
        options = with_plan(options, _planned(parser, options.plan))
    check_flags(options)
    return options


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the flags; hyphens in their names are replaced by underscores."""
    known = parser._option_string_actions

    def standard(argument: str) -> str:
        flag, equals, value = argument.partition("=")
        underscored = re.sub("(?<=[a-z0-9])-", "_", flag)
        return underscored + equals + value if underscored in known else argument

    return parser.parse_args([standard(argument) for argument in arguments])


def _planned(parser: argparse.ArgumentParser, path: str) -> argparse.Namespace:
    """The flags of the plan; errors name its file."""
    arguments = plan_as_arguments(path, parser)
    try:
        return _parse(parser, arguments)
    except UserError as error:
        raise UserError(f"{show_name(path)}: {str(error).removesuffix(SEE_HELP)}") from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raises a UserError of one line, in place of argparse's usage and exit."""
        raise UserError(f"{message}{SEE_HELP}")

    def format_help(self) -> str:
        """The usual help, plus the names that flags accept; those are read from files, so only when help is printed."""
        self.epilog = names_of_flags()
        return super().format_help()


def flags_parser() -> argparse.ArgumentParser:
    """The parser of all flags. Values stay text; those with a short list of choices are checked."""
    parser = _Parser(
        prog="model_training_cost_analysis",
        allow_abbrev=False,
        usage=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="What training a model costs, measured and by formula. One command for each job:\n\n"
        f"{job_examples()}\n\nFlags may have hyphens. calibrate --help: from measured steps or this machine to\n"
        "a file for --cluster. fit --help: from training runs to one for --scaling_law.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    parser.add_argument("--plan", metavar="FILE", help="more flags, from a TOML file; typed flags override them")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.add_argument("--markdown", action="store_true", help="print the answer and all tables as GitHub's Markdown")
    parser.add_argument("--details", action="store_true", help="print all tables after the first screen")
    parser.add_argument("--proof", action="store_true", help="print every number with the value of each witness")

    add_model_flags(parser)
    add_step_flags(parser)
    add_rank_flags(parser)
    add_machine_flags(parser)
    add_run_flags(parser)
    add_published_flags(parser)
    add_budget_flags(parser)
    add_output_flags(parser)
    return parser
