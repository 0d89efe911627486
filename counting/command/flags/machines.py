"""Flags of the machines that a step runs on, and of their prices."""

import argparse

from counting.cost.budget import DEFAULT_GPUS, DEFAULT_MFU
from counting.cost.run import MFU_RANGE


def add_machine_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of machines."""
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
