"""Activation checkpointing: a training step keeps less of its forward pass and computes it again for backward.

It uses torch's own checkpointing without early stop. A checkpointed function is run again as a whole, as in torchtitan
and Megatron-LM, so full recompute costs one forward pass of every layer (Chen et al. 2016, arXiv 1604.06174).
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast, get_args

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from torch_models.errors import ArgumentError
from torch_models.spec import Recompute

R = TypeVar("R")


def set_recompute(model: nn.Module, recompute: Recompute) -> None:
    """Set what every layer within `model` keeps for backward.

    ``none`` keeps all tensors that backward needs. ``selective`` does not keep those of the attention core, which runs
    again from queries, keys and values (Korthikanti et al. 2022, arXiv 2205.05198, §5). ``full`` keeps only the input
    of each layer. Raises `ArgumentError` for any other value.
    """
    if recompute not in get_args(Recompute):
        raise ArgumentError("recompute", recompute, f"must be one of {', '.join(get_args(Recompute))}")
    for flag, what in (("recompute_layer", "full"), ("recompute_core", "selective")):
        for module in model.modules():
            if hasattr(module, flag):
                setattr(module, flag, recompute == what)


def run(function: Callable[..., R], *args: Any, recompute: bool, **kwargs: Any) -> R:
    """Return `function(*args, **kwargs)`; with `recompute`, backward keeps only the arguments and runs it again."""
    if not (recompute and torch.is_grad_enabled()):
        return function(*args, **kwargs)
    # No function draws random numbers, so their state need not be restored.
    out = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False, early_stop=False, **kwargs)
    return cast(R, out)
