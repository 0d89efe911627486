"""Buffers that stay in fp32: numbers that no gradient updates, and that rounding would change for good."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


class BuffersInFP32(nn.Module):
    """A module whose own buffers are always fp32: no conversion changes them, and what is loaded is converted."""

    def register_fp32_buffer(self, name: str, value: Tensor) -> None:
        """Register `value`, in fp32, as a buffer that checkpoints have."""
        if not self._buffers:
            self.register_load_state_dict_post_hook(_in_fp32)  # type: ignore[no-untyped-call]
        self.register_buffer(name, value.to(torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Apply a conversion or a move, as every module does; of the buffers only a move."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)  # rounded values cannot be restored
        return self


def _in_fp32(module: BuffersInFP32, keys: object) -> None:
    """Convert buffers that `load_state_dict(assign=True)` has put in place in another dtype."""
    del keys
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else buffer.float()
