"""The parser of the flags, and their help texts."""

import argparse
import re
from collections.abc import Sequence
from typing import NoReturn, get_args

from counting.command.checks import check_flags
from counting.command.help import job_examples, names_of_flags
from counting.command.plan_file import plan_as_arguments, with_plan
from counting.cost.budget import DEFAULT_GPUS, DEFAULT_MFU
from counting.cost.run import MFU_RANGE
from counting.cost.scaling_laws import DEFAULT_LAW
from counting.recipes import DEFAULT_OPTIMIZER, DEFAULT_PRECISION
from counting.setup import Execution, ZeroGradients
from torch_models.errors import UserError, show_name
from torch_models.layout import DEFAULT_SCHEDULE, Framework, Grouping, Schedule
from torch_models.spec import Kernels, Recompute

VERSION = "0.1.0"
PUBLISHED = ("bills", "memory", "throughput")  # the kinds for --published; the first is the default
# An argument of the library -> the flag that sets it.
FLAGS = {
    "sequence_length": "--seq_len",
    "micro_batch_size": "--micro_batch_size",
    "micro_batches": "--micro_batches",
    "global_batch_tokens": "--global_batch_tokens",
    "zero_gradients": "--zero_gradients",
    "kernels": "--kernels",
    "recompute": "--recompute",
    "loss_chunk": "--loss_chunk",
    "mtp": "--mtp",
    "precision": "--precision",
    "optimizer": "--optimizer",
    "clip_gradients": "--clip_gradients",
    "expandable_segments": "--expandable_segments",
    "execution": "--execution",
    "gpus": "--gpus",
    "prices_usd_per_hour": "--gpu_prices",
    "mfu": "--mfu",
    "tokens": "--tokens",
    "num_gpus": "--num_gpus",
    "gpu_hours": "--gpu_hours",
    "tokens_per_second_per_gpu": "--tokens_per_second_per_gpu",
    "budget_usd": "--training_budget",
    "scaling_law": "--scaling_law",
    "published": "--published",
    "ignore_fields": "--ignore_fields",
    "dp": "--layout dp",
    "fsdp": "--layout fsdp",
    "zero": "--layout zero",
    "tp": "--layout tp",
    "sequence_parallel": "--layout sp",
    "cp": "--layout cp",
    "pp": "--layout pp",
    "ep": "--layout ep",
    "schedule": "--layout schedule",
    "stages_per_rank": "--layout stages_per_rank",
    "stage_layers": "--stage_layers",
    "framework": "--framework",
    "grouping": "--layout grouping",
    "gpus_per_node": "--gpus_per_node",
    "reserved": "--reserved",
    "expert_imbalance": "--expert_imbalance",
    "power_watts": "--power_watts",
    "cluster": "--cluster",
}
SEE_HELP = "; --help lists the flags"


def read_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """The typed flags and those of a plan, with their values still as text; `from_plan` names the flags of the plan.

    Raises `UserError` for unknown flags and for flags that do not go together.
    """
    parser = flags_parser()
    if arguments and not arguments[0].startswith("-"):
        rule = "is not a command; calibrate is one, else begin with a flag, as --model_config llama_7b"
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


class _Joined(argparse.Action):
    """Joins the values of a flag that is given several times with commas."""

    def __call__(self, parser: object, namespace: object, values: object, option_string: str | None = None) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if before is None else f"{before},{values}")


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
        description="What training a model costs; each number is measured and compared with a\n"
        "formula. One command for each job:\n\n"
        f"{job_examples()}\n\nA flag may have hyphens for its underscores.\n"
        "calibrate --help: from measured steps, or this machine, to a file for --cluster.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    parser.add_argument("--plan", metavar="FILE", help="more flags, from a TOML file; typed flags override them")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.add_argument("--details", action="store_true", help="print all tables after the first screen")
    parser.add_argument("--proof", action="store_true", help="print every number with the value of each witness")

    model = parser.add_argument_group("a model")
    model.add_argument(
        "--model_config",
        nargs="+",
        action="extend",
        default=[],
        metavar="CONFIG",
        help="config.json in Hugging Face's format: a path, its folder, or a name in configs/; several in turn",
    )
    model.add_argument(
        "--seq_len", metavar="TOKENS", help="sequence length; default: that of pre-training, from the config"
    )
    model.add_argument(
        "--ignore_fields",
        action=_Joined,
        metavar="NAMES",
        help="config fields that are not understood and do not matter, as a,b",
    )
    model.add_argument(
        "--text_only", action="store_true", help="of a model made of several (vision-language), the text decoder alone"
    )
    model.add_argument("--kernels", choices=get_args(Kernels), help="fused (default): no S x S matrix in memory")

    step = parser.add_argument_group("a training step of the model; the last three apply to a run, too")
    step.add_argument("--micro_batch_size", metavar="SEQUENCES", help="sequences that run together; default 1")
    step.add_argument("--micro_batches", metavar="NUMBER", help="micro-batches of a step, one by one; default 1")
    step.add_argument(
        "--global_batch_tokens", metavar="TOKENS", help="tokens of a step, as 2097152, instead of --micro_batches"
    )
    step.add_argument(
        "--zero_gradients",
        choices=get_args(ZeroGradients),
        help="after a step: free gradients (none, default) or fill them with zeros",
    )
    step.add_argument(
        "--recompute",
        metavar="PART",
        help=f"recomputed in backward: {', '.join(get_args(Recompute))}, or N, every N-th layer; default none",
    )
    step.add_argument("--loss_chunk", metavar="TOKENS", help="tokens whose logits are in memory at a time; default all")
    step.add_argument(
        "--clip_gradients", choices=("on", "off"), help="scale gradients to a maximal total norm; default off"
    )
    step.add_argument(
        "--reserved",
        choices=("on", "off"),
        help="also what torch's caching allocator reserves, an estimate; default on with --layout, and with --gpus "
        "without a run, where it takes less than about 10 s",
    )
    step.add_argument(
        "--execution",
        choices=get_args(Execution),
        help="how layers run: op by op (eager, default), or each compiled, an estimate of what is reserved and of time",
    )
    step.add_argument(
        "--expandable_segments", action="store_true", help="as PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
    )
    step.add_argument(
        "--trace_memory", metavar="FILE", help="write the step's memory snapshot, for the viewer at pytorch.org"
    )
    step.add_argument("--mtp", choices=("on", "off"), help="multi-token prediction; default on if the config has it")
    step.add_argument("--precision", metavar="RECIPE", help=f"formats of numbers; default {DEFAULT_PRECISION.name}")
    step.add_argument("--optimizer", metavar="NAME", help=f"default {DEFAULT_OPTIMIZER.name}")

    ranks = parser.add_argument_group("a step spread over ranks, as --num_gpus 256 --layout fsdp=32,tp=8")
    ranks.add_argument(
        "--layout",
        action=_Joined,
        metavar="AXES",
        help="as fsdp=32,tp=8: dp (default: what is left), fsdp with zero=1|2|3, tp with sp=on|off, cp, ep; pp with "
        f"schedule={'|'.join(get_args(Schedule))} (default {DEFAULT_SCHEDULE}), stages_per_rank=2; "
        f"grouping={'|'.join(get_args(Grouping))}",
    )
    ranks.add_argument(
        "--stage_layers", metavar="LAYERS", help="layers of each stage of pp, as 3,4,4; default as even as can be"
    )
    ranks.add_argument(
        "--framework",
        choices=get_args(Framework),
        help="whose rules say what a rank holds: torch (default), measured; megatron, an estimate by formula",
    )
    ranks.add_argument("--gpus_per_node", metavar="GPUS", help="default: that of the first of --gpus, else 8")
    ranks.add_argument(
        "--expert_imbalance",
        metavar="RATIO",
        help="rows of the busiest rank's experts to the mean; default 1, balanced",
    )

    machines = parser.add_argument_group("machines: where a step fits, how long it takes, what a run or a budget costs")
    machines.add_argument("--gpus", metavar="GPUS", help=f"as H100,B200; default for a budget {','.join(DEFAULT_GPUS)}")
    machines.add_argument(
        "--gpu_file", metavar="FILE", help="GPUs of your own, a JSON file of entries as in configs/gpus.json"
    )
    machines.add_argument(
        "--cluster", metavar="FILE", help="instead of --gpus: a GPU with its links, rates and measured steps, as JSON"
    )
    machines.add_argument(
        "--power_watts", metavar="WATTS", help="power limit of each GPU, below the board's, for the time of a step"
    )
    machines.add_argument("--trace", metavar="FILE", help="write a step over time, for the viewer at ui.perfetto.dev")
    machines.add_argument("--num_gpus", metavar="GPUS", help="number of GPUs, for days, tokens per second and --layout")
    machines.add_argument("--gpu_prices", metavar="PRICES", help="dollars per hour, as H100=2.10,L4=0.70")
    machines.add_argument("--price", metavar="USD", help="dollars per hour of every GPU that --gpus names")
    mfu_range = f"{MFU_RANGE[0]} to {MFU_RANGE[-1]}"
    machines.add_argument(
        "--mfu",
        metavar="SHARE",
        help=f"model FLOPs utilisation, at most 1; default {DEFAULT_MFU} for a budget; for a run predicted with "
        f"--layout, else {mfu_range}",
    )

    run = parser.add_argument_group("a run")
    run.add_argument(
        "--tokens", metavar="TOKENS", help="number of training tokens for each model, as 15T, 300B or 2000000"
    )
    run.add_argument("--gpu_hours", metavar="HOURS", help="published hours, as 2.664M: what MFU do they imply?")
    run.add_argument(
        "--tokens_per_second_per_gpu", metavar="TOKENS", help="speed of a running job, as 11000: what MFU is that?"
    )
    run.add_argument("--compare", action="store_true", help="several models side by side, on one GPU")

    published = parser.add_argument_group("published runs")
    published.add_argument(
        "--published",
        nargs="?",
        const=PUBLISHED[0],
        metavar="KIND",
        help=f"published figures, worked out again: {', '.join(PUBLISHED)}; default {PUBLISHED[0]}",
    )
    published.add_argument("--claim", action="store_true", help="was DeepSeek-V3 trained for $5.576 million?")

    budget = parser.add_argument_group("a budget")
    budget.add_argument("--training_budget", metavar="USD", help="dollars to spend on training, as 5M or 200k")
    budget.add_argument("--scaling_law", metavar="LAW", help=f"default {DEFAULT_LAW.name}")
    budget.add_argument("--design", metavar="FILE", help="design a model for the budget and write its config to FILE")
    budget.add_argument("--force", action="store_true", help="let --design, --trace and --trace_memory replace FILE")
    return parser
