"""Flags of a run, of published ones, and of a budget."""

import argparse

from counting.command.flags.names import PUBLISHED
from counting.cost.scaling_laws import DEFAULT_LAW


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of a run."""
    run = parser.add_argument_group("a run")
    run.add_argument(
        "--tokens", metavar="TOKENS", help="number of training tokens for each model, as 15T, 300B or 2000000"
    )
    run.add_argument("--gpu_hours", metavar="HOURS", help="published hours, as 2.664M: what MFU do they imply?")
    run.add_argument(
        "--tokens_per_second_per_gpu", metavar="TOKENS", help="speed of a running job, as 11000: what MFU is that?"
    )
    run.add_argument("--compare", action="store_true", help="several models side by side, on one GPU")


def add_published_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of published figures."""
    published = parser.add_argument_group("published runs")
    published.add_argument(
        "--published",
        nargs="?",
        const=PUBLISHED[0],
        metavar="KIND",
        help=f"published figures, worked out again: {', '.join(PUBLISHED)}; default {PUBLISHED[0]}",
    )
    published.add_argument("--claim", action="store_true", help="was DeepSeek-V3 trained for $5.576 million?")


def add_budget_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of a budget."""
    budget = parser.add_argument_group("a budget")
    budget.add_argument("--training_budget", metavar="USD", help="dollars to spend on training, as 5M or 200k")
    budget.add_argument(
        "--scaling_law",
        metavar="LAWS",
        help=f"a law's name, a file as law.json, all, or several with commas: the first is followed, the others stand "
        f"beside it; default {DEFAULT_LAW.name}",
    )
    budget.add_argument(
        "--unique_tokens", metavar="TOKENS", help="tokens that there are, as 300B: more repeat them, and are worth less"
    )
    budget.add_argument(
        "--inference_tokens",
        metavar="TOKENS",
        help="tokens that the model serves in its life, as 2T, of the same budget",
    )
    budget.add_argument(
        "--expansion_rate",
        metavar="RATIO",
        help="for a mixture: feed-forward parameters for each that a token uses, as 32 for 8 of 256 experts",
    )
    budget.add_argument("--design", metavar="FILE", help="design a model for the budget and write its config to FILE")
    budget.add_argument(
        "--design_family", metavar="FAMILY", help="of which family: llama (default), qwen3, deepseek_v3 (a mixture)"
    )
