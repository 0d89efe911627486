"""The flags: what they are called, what they need, and what --help says of them."""

import argparse
from collections.abc import Sequence
from typing import NoReturn, get_args

from counting.cost.budget import DEFAULT_GPUS, DEFAULT_MFU
from counting.cost.run import MFU_RANGE
from counting.cost.scaling_laws import DEFAULT_LAW, LAWS
from counting.recipes import DEFAULT_OPTIMIZER, DEFAULT_PRECISION, OPTIMIZERS, PRECISIONS
from torch_models.errors import UserError
from torch_models.spec import Kernels, Recompute

VERSION = "0.1.0"

# Flag -> the flags without one of which it would mean nothing.
NEEDS = {
    "tokens": ("model_config",),
    "seq_len": ("model_config",),
    "kernels": ("model_config",),
    "recompute": ("model_config",),
    "mtp": ("model_config",),
    "loss_chunk": ("model_config",),
    "gpus": ("training_budget", "tokens"),
    "mfu": ("training_budget", "tokens"),
    "gpu_prices": ("training_budget", "tokens"),
    "price": ("gpus",),
    "num_gpus": ("tokens",),
    "global_batch_tokens": ("tokens",),
    "gpu_hours": ("tokens",),
    "precision": ("model_config",),
    "optimizer": ("model_config",),
    "compare": ("tokens",),
    "scaling_law": ("training_budget",),
    "design": ("training_budget",),
    "force": ("design",),
}


def read_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags as they are typed, text still; raises `UserError` for those that are unknown or go badly together."""
    options = flags_parser().parse_args(arguments)
    check_flags(options)
    return options


def check_flags(options: argparse.Namespace) -> None:
    """Refuse flags that need another, and those that contradict each other; values are not looked at."""
    given = {flag for flag, value in vars(options).items() if value not in (None, False, [])}
    for flag, others in NEEDS.items():
        if flag in given and not given.intersection(others):
            raise UserError(f"--{flag} needs {' or '.join(f'--{other}' for other in others)}")
    if not given & {"model_config", "training_budget", "published", "claim"}:
        raise UserError(
            "nothing to do: give --model_config or --training_budget, --published or --claim, or --help for all flags"
        )
    if "tokens" in given and "gpus" not in given:
        raise UserError("--tokens needs --gpus: say what to train on, as --gpus H100")
    if {"mfu", "gpu_hours"} <= given:
        raise UserError("--gpu_hours says what the MFU was: leave out --mfu")
    if {"price", "gpu_prices"} <= given:
        raise UserError("give either --price, for every GPU, or --gpu_prices")
    if "compare" in given and len(options.model_config) < 2:
        raise UserError("--compare needs two models or more: give --model_config with several configs")
    if {"compare", "gpu_hours"} <= given:
        raise UserError("--compare takes no --gpu_hours, which are of one model's run: give --mfu")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as every other error; argparse would print the usage before it."""
        raise UserError(f"{message}; --help lists the flags")


def flags_parser() -> argparse.ArgumentParser:
    """The parser of all flags; values stay text, but for those that have a short list of choices."""
    parser = _Parser(
        prog="model_training_cost_analysis",
        allow_abbrev=False,
        description="What training a model costs: parameters, FLOPs, memory, hours, dollars, and the best model for a "
        "budget. Numbers are measured on real modules on the meta device and held against closed-form formulas; where "
        "there is no formula, it says so.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")

    model = parser.add_argument_group("a model")
    model.add_argument(
        "--model_config",
        nargs="+",
        action="extend",
        default=[],
        metavar="CONFIG",
        help="config.json in Hugging Face's format: a path, or a name in configs/; several are analysed in turn",
    )
    model.add_argument("--seq_len", metavar="TOKENS", help="sequence length; else the config's own")
    model.add_argument("--kernels", choices=get_args(Kernels), help="fused (default): no S x S matrix in memory")

    step = parser.add_argument_group(
        "a training step of the model, forward and backward; the last three are a run's, too"
    )
    step.add_argument("--recompute", choices=get_args(Recompute), help="what backward computes again; default none")
    step.add_argument("--loss_chunk", metavar="TOKENS", help="tokens whose logits are in memory at a time; default all")
    step.add_argument("--mtp", choices=("on", "off"), help="multi-token prediction; default on where the config has it")
    recipes, optimizers = (", ".join(entry.name for entry in known) for known in (PRECISIONS, OPTIMIZERS))
    step.add_argument("--precision", metavar="RECIPE", help=f"one of {recipes}; default {DEFAULT_PRECISION.name}")
    step.add_argument("--optimizer", metavar="NAME", help=f"one of {optimizers}; default {DEFAULT_OPTIMIZER.name}")

    machines = parser.add_argument_group("machines, for a run or a budget")
    machines.add_argument(
        "--gpus", metavar="GPUS", help=f"as H100,B200; of a budget by default {','.join(DEFAULT_GPUS)}"
    )
    machines.add_argument("--gpu_prices", metavar="PRICES", help="dollars per hour, as H100=2.10,L4=0.70")
    machines.add_argument("--price", metavar="USD", help="dollars per hour of every GPU that --gpus names")
    mfu_range = f"{MFU_RANGE[0]} to {MFU_RANGE[-1]}"
    machines.add_argument(
        "--mfu",
        metavar="SHARE",
        help=f"model FLOPs utilisation, at most 1; default {DEFAULT_MFU} of a budget, {mfu_range} of a run",
    )

    run = parser.add_argument_group("a run")
    run.add_argument("--tokens", metavar="TOKENS", help="train each model on so many, as 15T, 300B or 2000000")
    run.add_argument("--num_gpus", metavar="GPUS", help="how many, for days and tokens per second")
    run.add_argument("--global_batch_tokens", metavar="TOKENS", help="tokens per step, for the number of steps")
    run.add_argument("--gpu_hours", metavar="HOURS", help="published hours, as 2.664M: what MFU do they imply?")
    run.add_argument("--compare", action="store_true", help="several models side by side, on one GPU")

    published = parser.add_argument_group("published runs")
    published.add_argument("--published", action="store_true", help="published training bills, reproduced")
    published.add_argument("--claim", action="store_true", help="was DeepSeek-V3 trained for $5.576 million?")

    budget = parser.add_argument_group("a budget")
    budget.add_argument("--training_budget", metavar="USD", help="dollars to spend on training")
    laws = ", ".join(law.name for law in LAWS)
    budget.add_argument("--scaling_law", metavar="LAW", help=f"one of {laws}; default {DEFAULT_LAW.name}")
    budget.add_argument("--design", metavar="FILE", help="design a model for the budget and write its config to FILE")
    budget.add_argument("--force", action="store_true", help="let --design replace FILE")
    return parser
