"""Flags of the model."""

import argparse
from typing import get_args

from counting.command.flags.actions import Joined
from torch_models.spec import Kernels


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the model."""
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
        action=Joined,
        metavar="NAMES",
        help="config fields that are not understood and do not matter, as a,b",
    )
    model.add_argument(
        "--text_only", action="store_true", help="of a model made of several (vision-language), the text decoder alone"
    )
    model.add_argument("--kernels", choices=get_args(Kernels), help="fused (default): no S x S matrix in memory")
