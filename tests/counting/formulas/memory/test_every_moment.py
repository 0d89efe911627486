"""Simulated memory equals measured memory after every operation, forward and backward, not at the peak alone.

A tensor that the simulation forgets, or a gradient that it frees too late, shows even where no peak is near.
"""

import random
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from counting.formulas.memory.layer import layer as run_layer
from counting.formulas.memory.layer import residual_stream
from counting.formulas.memory.layer import rotary_tables as simulated_tables
from counting.formulas.memory.tape import Array, Size, Tape
from counting.measurements.live_bytes import LiveBytes
from counting.measurements.meta_device import measuring
from counting.setup import MicroBatch
from tests.random_specs import random_layer
from tests.sweeps import seeds
from torch_models.builder import creating
from torch_models.modules.decoder import DecoderLayer
from torch_models.modules.layers import rotary_tables
from torch_models.modules.recompute import set_recompute
from torch_models.spec import Kernels, LayerSpec, Recompute

KERNELS: list[Kernels] = ["fused", "eager"]
RECOMPUTES: list[Recompute] = ["none", "selective", "per_op", "full"]


class Curve(LiveBytes):
    """The bytes alive after each op that made a tensor."""

    def __init__(self, existing: Iterable[Tensor]) -> None:
        super().__init__(existing)
        self.before = self.live
        self.points: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        born = self.born
        out = super().__torch_dispatch__(function, types, args, kwargs)
        if self.born > born:
            self.points.append(self.live - self.before)
        return out


class SimulatedCurve(Tape):
    """The bytes alive after each birth."""

    def __init__(self, *, grad: bool) -> None:
        super().__init__(grad=grad)
        self.before = 0
        self.points: list[int] = []

    def born(self, *sizes: Size) -> tuple[Array, ...]:
        arrays = super().born(*sizes)
        self.points.append(self.live - self.before)
        return arrays


def by_simulation(
    spec: LayerSpec, batch: MicroBatch, kernels: Kernels, recompute: Recompute, width: int, *, grad: bool
) -> list[int]:
    tape = SimulatedCurve(grad=grad)
    tables = simulated_tables(tape, spec, batch.length, width)
    x = residual_stream(tape, spec, batch.tokens, width)
    tape.before = tape.live
    tape.points.clear()
    out = run_layer(tape, spec, x, batch, kernels, recompute)
    if grad:
        gradient = tape.like(out.size)
        tape.deliver(out.edge, gradient.again())
        tape.backward()
        del gradient
    del out
    moments = [*tape.points, tape.live - tape.before]
    del tables  # which all layers share, and which outlive the pass
    return moments


def by_measurement(
    spec: LayerSpec, batch: MicroBatch, kernels: Kernels, recompute: Recompute, dtype: torch.dtype, *, grad: bool
) -> list[int]:
    with creating("meta", dtype):
        layer = DecoderLayer(spec, kernels)
    set_recompute(layer, recompute)
    tables = rotary_tables(spec.attention.rotary, batch.length, torch.device("meta"), dtype)
    x = torch.empty(*batch, spec.hidden_size, device="meta", dtype=dtype).requires_grad_(grad)
    existing = [*layer.parameters(), *layer.buffers(), x, *tables]
    with measuring(), torch.set_grad_enabled(grad), Curve(existing) as curve:
        out = layer(x, tables)
        if grad:
            gradient = torch.empty_like(out)
            torch.autograd.backward(out, gradient)
            del gradient
        del out
    return [*curve.points, curve.live - curve.before]


@pytest.mark.parametrize("recompute", RECOMPUTES)
@pytest.mark.parametrize("seed", seeds(50, 300))
def test_forward_and_backward(seed: int, recompute: Recompute) -> None:
    pick = random.Random(seed)
    layer, kernels = random_layer(pick, indexers=True), pick.choice(KERNELS)
    batch = MicroBatch(pick.choice([1, 1, 2, 3]), pick.choice([1, 2, 7, 64, 333]))
    dtype = pick.choice([torch.bfloat16, torch.bfloat16, torch.float32])
    run = (layer, batch, kernels, recompute)
    assert by_measurement(*run, dtype, grad=True) == by_simulation(*run, dtype.itemsize, grad=True)


@pytest.mark.parametrize("seed", seeds(30, 200))
def test_forward_without_gradients(seed: int) -> None:
    pick = random.Random(seed)
    batch = MicroBatch(pick.choice([1, 1, 2, 3]), pick.choice([1, 2, 7, 64, 333]))
    run = (random_layer(pick, indexers=True), batch, pick.choice(KERNELS), "none")
    assert by_measurement(*run, torch.bfloat16, grad=False) == by_simulation(*run, 2, grad=False)
