"""Activation checkpointing: what a training step keeps of its forward pass, and what it computes again for backward.

By torch's own checkpointing, without its early stop: what is recomputed is recomputed whole, as torchtitan and
Megatron-LM do, so that full recompute costs one forward pass of every layer (Chen et al. 2016, arXiv 1604.06174).
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
    """Let every layer below `model` keep for backward what `recompute` says.

    ``none``: all that backward needs. ``selective``: all but what the attention core keeps, which is computed again
    from queries, keys and values (Korthikanti et al. 2022, arXiv 2205.05198, §5). ``full``: each layer's input alone.
    """
    if recompute not in get_args(Recompute):
        raise ArgumentError("recompute", recompute, f"must be one of {', '.join(get_args(Recompute))}")
    for flag, what in (("recompute_layer", "full"), ("recompute_core", "selective")):
        for module in model.modules():
            if hasattr(module, flag):
                setattr(module, flag, recompute == what)


def run(function: Callable[..., R], *args: Any, recompute: bool, **kwargs: Any) -> R:
    """`function(*args, **kwargs)`; with `recompute`, only `args` are kept for backward, which runs it again."""
    if not (recompute and torch.is_grad_enabled()):
        return function(*args, **kwargs)
    # No random numbers are drawn, so there is no state of theirs to restore.
    out = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False, early_stop=False, **kwargs)
    return cast(R, out)
