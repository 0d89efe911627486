"""Measured FLOPs of one training step: real modules run forward and backward on meta, every product counted.

By `torch.utils.flop_counter`, as the forward pass in flops.py. Which module an op of the backward pass belongs to that
counter only guesses: modules that run side by side, as a router, its experts and the shared ones, get each other's
products. Here it is told: the module whose forward pass made the autograd node that runs, by the node's sequence
number; or, of a forward pass that is run again for backward, the module that runs.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from functools import partial
from typing import Any, Literal, NamedTuple

import msgspec
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.flop_counter import FlopCounterMode

from counting.counts import Counts, StepFlops
from counting.measurements.components import component_of
from counting.measurements.meta_device import cuda_kernels_on_meta
from counting.measurements.probe import MEASURED_DTYPE, ONE_AT_A_TIME
from counting.measurements.trace import DISPATCH_FORMULAS
from torch_models.builder import build_model, build_mtp_layers
from torch_models.modules.decoder import CausalLM
from torch_models.modules.recompute import set_recompute
from torch_models.spec import Kernels, ModelSpec, Recompute
from torch_models.training.loss import training_loss

CHUNKS_RUN = 8  # of the loss that are run: every token's logits are made in one of them, however many there are

Phase = Literal["forward", "backward"]


class Owner(NamedTuple):
    """Whose FLOPs a module's are, and how many such modules the whole model has for the one that is run."""

    component: str | None  # None for what multiplies nothing by itself
    times: Fraction


def measure_step(
    spec: ModelSpec,
    sequence_length: int,
    kernels: Kernels,
    *,
    recompute: Recompute = "none",
    loss_chunk: int | None = None,
) -> StepFlops:
    """FLOPs of one step over one sequence, by component; all `spec.mtp_layers` are trained.

    One layer of each distinct kind is built and run, so the time does not depend on their number. One measurement runs
    at a time, and none while `counting.measurements.probe.measure` does.
    """
    return measure_steps(spec, sequence_length, kernels, [(recompute, loss_chunk)])[0]


def measure_steps(
    spec: ModelSpec, sequence_length: int, kernels: Kernels, ways: Iterable[tuple[Recompute, int | None]]
) -> list[StepFlops]:
    """As `measure_step`, for several ways to run the step: what to recompute, and the tokens of a chunk of the loss.

    What is recomputed is what the backward pass runs beyond that of a step in which nothing is.
    """
    with ONE_AT_A_TIME, torch.inference_mode(False), torch.enable_grad(), cuda_kernels_on_meta():
        run = partial(_run, *_one_of_each(spec, kernels), sequence_length)
        once = run("none", None)
        steps = []
        for recompute, loss_chunk in ways:
            again = once if (recompute, loss_chunk) == ("none", None) else run(recompute, loss_chunk)
            recomputed = again.backward - once.backward
            steps.append(StepFlops(forward=again.forward, backward=once.backward, recomputed=recomputed))
        return steps


def _run(
    model: CausalLM,
    mtp_layers: nn.ModuleList,
    owners: Mapping[nn.Module, Owner],
    sequence_length: int,
    recompute: Recompute,
    loss_chunk: int | None,
) -> StepFlops:
    """One step, forward and backward; what it recomputes is in its backward pass."""
    for part in (model, mtp_layers):
        set_recompute(part, recompute)
    if loss_chunk is not None:
        loss_chunk = max(loss_chunk, -(-sequence_length // CHUNKS_RUN))
    token_ids = torch.zeros(1, sequence_length, dtype=torch.long, device="meta")
    counter = FlopCounterMode(display=False, custom_mapping=DISPATCH_FORMULAS)
    tracker: Any = _Owners(owners)
    counter.mod_tracker = tracker
    with counter:
        training_loss(model, mtp_layers, token_ids, token_ids, loss_chunk=loss_chunk).backward()
    return _of_whole_model(counter.flop_counts)


def _one_of_each(spec: ModelSpec, kernels: Kernels) -> tuple[CausalLM, nn.ModuleList, dict[nn.Module, Owner]]:
    """The modules of a model with one layer of each kind, and whose FLOPs theirs are."""
    groups, mtp_groups = spec.layer_groups(), Counter(spec.mtp_layers)
    small = msgspec.structs.replace(
        spec, layers=tuple(layer for layer, _ in groups), mtp_layers=tuple(layer for layer in mtp_groups)
    )
    model = build_model(small, device="meta", dtype=MEASURED_DTYPE, kernels=kernels)
    mtp_layers = build_mtp_layers(small, device="meta", dtype=MEASURED_DTYPE, kernels=kernels)
    heads = Fraction(1 + len(spec.mtp_layers), 1 + len(mtp_groups))  # the head runs for the model and for each of these
    owners = dict(_owners(model, heads))
    for layer, (_, count) in zip(model.model.layers, groups, strict=True):
        owners |= _owners(layer, Fraction(count))
    for layer, count in zip(mtp_layers, mtp_groups.values(), strict=True):
        owners |= _owners(layer, Fraction(count))
    return model, mtp_layers, owners


def _owners(root: nn.Module, times: Fraction) -> Iterator[tuple[nn.Module, Owner]]:
    return ((module, Owner(component_of(root, name), times)) for name, module in root.named_modules())


def _of_whole_model(flop_counts: Mapping[Any, Mapping[Any, int]]) -> StepFlops:
    """What the counter counted under each phase and owner, times how many of that owner's modules there are."""
    totals: dict[Phase, dict[str, Fraction]] = {"forward": {}, "backward": {}}
    for (phase, owner), flops_by_op in flop_counts.items():
        assert owner is not None and owner.component is not None, f"products of no component: {dict(flops_by_op)}"
        counts = totals[phase]
        counts[owner.component] = counts.get(owner.component, 0) + sum(flops_by_op.values()) * owner.times
    assert all(count.denominator == 1 for counts in totals.values() for count in counts.values())
    return StepFlops(**{phase: Counts(**{c: int(n) for c, n in counts.items()}) for phase, counts in totals.items()})


class _Owners:
    """Tells torch's counter, in place of its own tracker, in which phase and for whom the op at hand is run."""

    def __init__(self, owners: Mapping[nn.Module, Owner]) -> None:
        self.owners = owners
        self.running: list[Owner] = []  # those of the modules that run forward now, the innermost last
        # The forward pass numbers its autograd nodes; whose they are from which number on.
        self.first_numbers: list[int] = []
        self.owners_of_nodes: list[Owner | None] = []

    @property
    def parents(self) -> set[tuple[Phase, Owner | None]]:
        """The one key under which the counter counts the op that is dispatched now."""
        node: Any = torch._C._current_autograd_node()
        if node is None:
            return {("forward", self._innermost())}
        return {("backward", self._innermost() or self._owner_of(node._sequence_nr()))}

    def _innermost(self) -> Owner | None:
        return self.running[-1] if self.running else None

    def _owner_of(self, number: int) -> Owner | None:
        index = bisect_right(self.first_numbers, number) - 1
        return self.owners_of_nodes[index] if index >= 0 else None

    def _begin(self, module: nn.Module, _: Any) -> None:
        self.running.append(self.owners[module])
        self._note()

    def _end(self, module: nn.Module, _: Any, __: Any) -> None:
        self.running.pop()
        self._note()

    def _note(self) -> None:
        if torch._C._current_autograd_node() is None:
            self.first_numbers.append(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]
            self.owners_of_nodes.append(self._innermost())

    def __enter__(self) -> None:
        self.hooks = [register_module_forward_pre_hook(self._begin), register_module_forward_hook(self._end)]

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()
