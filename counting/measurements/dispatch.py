"""Measured FLOPs by torch's dispatch: every dispatched op is counted for the module to which it belongs.

An op of the backward pass belongs to the module whose forward pass created the running autograd node, found by the
node's sequence number. During a backward pass, activation checkpointing runs parts of the forward pass again; these
ops are counted separately.
"""

import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from counting.counts import Counts
from counting.measurements.components import component_of
from counting.measurements.ops.formulas import op_flops

Pass = Literal["forward", "backward", "recomputed"]


class ForwardHooks:
    """Context that calls `begin` and `end` around the forward pass of every module that the measured code runs.

    Measured are the thread that entered the context, and the threads in which torch runs the backward pass on other
    devices, where activation checkpointing runs modules again.
    """

    def __init__(self, begin: Callable[[nn.Module], None], end: Callable[[nn.Module], None]) -> None:
        self._begin, self._end = begin, end

    def _is_ours(self) -> bool:
        return threading.get_ident() == self._thread or torch._C._current_autograd_node() is not None

    def __enter__(self) -> None:
        self._thread = threading.get_ident()
        self._hooks = [
            register_module_forward_pre_hook(lambda module, _: self._begin(module) if self._is_ours() else None),
            register_module_forward_hook(
                lambda module, _, __: self._end(module) if self._is_ours() else None, always_call=True
            ),
        ]

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


class Attribution:
    """Context in which `where()` returns the phase and the module of the current op.

    The module is None for ops outside all modules. Until exit, global hooks are set on every module of the process;
    modules that other threads run are ignored.
    """

    def __init__(self) -> None:
        self._hooks = ForwardHooks(self._begin, self._end)
        self._running: list[nn.Module] = []  # modules whose forward pass runs now, the innermost last
        # The forward pass numbers its autograd nodes: nodes from `_first_numbers[i]` on are of `_modules_of_nodes[i]`.
        self._first_numbers: list[int] = []
        self._modules_of_nodes: list[nn.Module | None] = []

    def where(self) -> tuple[Pass, nn.Module | None]:
        """The phase and the innermost module of the op that is being dispatched."""
        node: Any = torch._C._current_autograd_node()
        if node is None:
            return "forward", self._innermost()
        module = self._innermost() or self._module_of(node._sequence_nr())
        return ("recomputed" if self._runs_again() else "backward"), module

    def _runs_again(self) -> bool:
        """Whether an op during the backward pass belongs to a forward pass that is run again.

        This is so if a module is running; if gradients are enabled, which they are not inside torch's own ops; or, for
        a function that is no module, if the hooks are set with which torch's checkpointing intercepts saved tensors.
        """
        takes_what_is_saved = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        return bool(self._running) or torch.is_grad_enabled() or takes_what_is_saved

    def _innermost(self) -> nn.Module | None:
        return self._running[-1] if self._running else None

    def _module_of(self, number: int) -> nn.Module | None:
        index = bisect_right(self._first_numbers, number) - 1
        return self._modules_of_nodes[index] if index >= 0 else None

    def _begin(self, module: nn.Module) -> None:
        self._running.append(module)
        self._note()

    def _end(self, module: nn.Module) -> None:
        self._running.pop()
        self._note()

    def _note(self) -> None:
        if torch._C._current_autograd_node() is None:
            self._first_numbers.append(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]
            self._modules_of_nodes.append(self._innermost())

    def __enter__(self) -> "Attribution":
        self._hooks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.__exit__()


class Owner(NamedTuple):
    """The component of a module's FLOPs, and how many such modules the whole model has for each one that is run."""

    component: str | None  # None for a module that multiplies nothing itself
    times: int


class FlopCounter:
    """Sums the FLOPs of ops by pass and module.

    An instance is called with each op that runs: it is an `observe` argument of `live_bytes.LiveBytes`.
    """

    def __init__(self, attribution: Attribution) -> None:
        self._attribution = attribution
        self.flops: Counter[tuple[Pass, nn.Module | None]] = Counter()

    def __call__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Count one op. Raises `UserError` if it has no formula and is not known to multiply no matrices."""
        if flops := op_flops(function, args, kwargs, out):
            self.flops[self._attribution.where()] += flops

    def of_pass(self, phase: Pass, owners: Mapping[nn.Module, Owner]) -> Counts:
        """FLOPs of one phase by component; each module's FLOPs are multiplied by its `Owner.times`."""
        counts: Counter[str] = Counter()
        for (counted_in, module), flops in self.flops.items():
            if counted_in == phase:
                owner = None if module is None else owners.get(module)
                assert owner and owner.component, f"{flops} FLOPs of {type(module).__name__} belong to no component"
                counts[owner.component] += flops * owner.times
        return Counts(**counts)


def owners_in(root: nn.Module, times: int = 1) -> dict[nn.Module, Owner]:
    """The owner of every module in `root`, including `root`; the model has `times` of each."""
    return {module: Owner(component_of(root, name), times) for name, module in root.named_modules()}
