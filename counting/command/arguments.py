"""From flags to the library's arguments: what a step is run with, what a run and a budget are planned with.

A flag that is not given is left to the library's own default.
"""

import argparse
from collections.abc import Callable
from typing import Any, TypeVar

from counting.command.amounts import (
    parse_dollars,
    parse_gpus,
    parse_hours,
    parse_mfu,
    parse_num_gpus,
    parse_prices,
    parse_tokens,
    parse_whole_number,
)
from counting.cost.budget import BudgetPlan, plan_budget
from counting.cost.run import RunPlan
from counting.setup import Setup
from torch_models.errors import UserError

_T = TypeVar("_T")


def setup_of(options: argparse.Namespace) -> Setup:
    """How a step is run; multi-token prediction is trained where a config has it, unless it is off."""
    return Setup(
        **_given(
            sequence_length=_parsed(options.seq_len, lambda text: parse_whole_number(text, "--seq_len")),
            kernels=options.kernels,
            recompute=options.recompute,
            loss_chunk=_parsed(options.loss_chunk, lambda text: parse_whole_number(text, "--loss_chunk")),
            mtp=False if options.mtp == "off" else None,
            precision=options.precision,
            optimizer=options.optimizer,
        )
    )


def run_plan_of(options: argparse.Namespace) -> RunPlan | None:
    """The run that each model is planned for; None without --tokens."""
    if options.tokens is None:
        return None
    gpus, mfu = parse_gpus(options.gpus), _parsed(options.mfu, parse_mfu)
    if options.compare and len(gpus) != 1:
        raise UserError(f"--compare needs one GPU, but --gpus names {len(gpus)}: {', '.join(gpus)}")
    return RunPlan(
        tokens=parse_tokens(options.tokens),
        gpus=gpus,
        **_given(
            num_gpus=_parsed(options.num_gpus, parse_num_gpus),
            mfus=None if mfu is None else (mfu,),
            gpu_hours=_parsed(options.gpu_hours, parse_hours),
            prices_usd_per_hour=_prices(options),
            global_batch_tokens=_parsed(
                options.global_batch_tokens, lambda text: parse_tokens(text, "--global_batch_tokens")
            ),
        ),
    )


def budget_of(options: argparse.Namespace) -> BudgetPlan | None:
    """What the budget buys; None without --training_budget."""
    if options.training_budget is None:
        return None
    return plan_budget(
        parse_dollars(options.training_budget),
        **_given(
            gpus=_parsed(options.gpus, parse_gpus),
            mfu=_parsed(options.mfu, parse_mfu),
            scaling_law=options.scaling_law,
            prices_usd_per_hour=_prices(options),
        ),
    )


def _prices(options: argparse.Namespace) -> dict[str, float] | None:
    """Dollars per hour by GPU: one price for all that are named, or one for each."""
    if options.price is not None:
        return dict.fromkeys(parse_gpus(options.gpus), parse_dollars(options.price, "--price"))
    return _parsed(options.gpu_prices, parse_prices)


def _parsed(text: str | None, parse: Callable[[str], _T]) -> _T | None:
    return None if text is None else parse(text)


def _given(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}
