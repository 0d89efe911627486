"""FLOPs of attention that the ranks of cp do not compute: of blocks in which causality hides all keys."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from counting.counts import COMPONENTS, Counts
from counting.measurements.dispatch import Attribution, FlopCounter, Owner

_aten = torch.ops.aten

# What torch's ring attention calls for each block, and is itself called as.
KERNELS = (
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
)


class SkippedByCausality:
    """The forward passes of attention: of all positions, divided evenly over the ranks, less the kernels as called.

    Call `of_all_positions` with each op on DTensors, whose shapes are those of whole sequences, and an instance with
    each op on the tensors of this rank.
    """

    def __init__(self, attribution: Attribution, ranks: int) -> None:
        self._ranks = ranks
        self._whole, self._called = FlopCounter(attribution), FlopCounter(attribution)

    def of_all_positions(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note an op on DTensors, which is about to run."""
        if self._ranks > 1 and function in KERNELS:
            self._whole(function, args, kwargs, None)

    def __call__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Note an op of this rank."""
        if self._ranks > 1 and function in KERNELS:
            self._called(function, args, kwargs, out)

    def counts(self, owners: Mapping[nn.Module, Owner]) -> Counts:
        """FLOPs of the forward pass, by component."""
        whole, called = (counter.of_pass("forward", owners) for counter in (self._whole, self._called))
        share = {component: getattr(whole, component) for component in COMPONENTS}
        assert not any(flops % self._ranks for flops in share.values()), "positions are divided evenly"
        return Counts(**{component: flops // self._ranks for component, flops in share.items()}) - called
