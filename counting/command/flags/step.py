"""Flags of a training step, on one device and spread over ranks."""

import argparse
from typing import get_args

from counting.command.flags.actions import Joined
from counting.recipes import DEFAULT_OPTIMIZER, DEFAULT_PRECISION
from counting.setup import Execution, ZeroGradients
from torch_models.layout import DEFAULT_SCHEDULE, Framework, Grouping, Schedule
from torch_models.spec import Recompute


def add_step_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of a training step."""
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
    step.add_argument("--mtp", choices=("on", "off"), help="multi-token prediction; default on if the config has it")
    step.add_argument("--precision", metavar="RECIPE", help=f"formats of numbers; default {DEFAULT_PRECISION.name}")
    step.add_argument("--optimizer", metavar="NAME", help=f"default {DEFAULT_OPTIMIZER.name}")


def add_rank_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of a step that is spread over ranks."""
    ranks = parser.add_argument_group("a step spread over ranks, as --num_gpus 256 --layout fsdp=32,tp=8")
    ranks.add_argument(
        "--layout",
        action=Joined,
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
