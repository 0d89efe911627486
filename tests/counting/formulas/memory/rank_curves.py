"""The bytes alive on a rank after every operation that makes a tensor, measured and simulated.

The rank runs the whole model, with its loss, without fully_shard: what that adds is another witness's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from counting.formulas.memory import simulate, step
from counting.formulas.memory.tape import Array, Size, Tape
from counting.measurements.meta_device import measuring
from counting.measurements.ranks.fake_world import fake_world
from counting.measurements.ranks.live_bytes import RankBytes
from counting.setup import Setup
from torch_models.builder import build_model_with_loss
from torch_models.layout import Layout
from torch_models.modules.recompute import set_recompute
from torch_models.parallel.context import divide_positions
from torch_models.parallel.experts import divide_experts
from torch_models.parallel.mesh import build_meshes
from torch_models.parallel.tensor import divide_tensors, loss_context
from torch_models.spec import ModelSpec
from torch_models.training.model import TrainingModel


class RankCurve(RankBytes):
    """The bytes alive after each op that made a tensor."""

    def __init__(self, model: TrainingModel, inputs: list[Tensor]) -> None:
        super().__init__([*model.parameters(), *model.buffers(), *inputs], lambda *op: None)
        self.before = self.live
        self.points: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        born = self.born
        out = super().__torch_dispatch__(function, types, args, kwargs)
        if self.born > born:
            self.points.append(self.live - self.before)
        return out


def measured_curve(spec: ModelSpec, setup: Setup, layout: Layout, rank: int = 0) -> list[int]:
    """The curve of the modules on the meta device."""
    assert setup.micro_batches is not None
    assert setup.sequence_length is not None
    mtp_layers = len(spec.mtp_layers) if setup.mtp and layout.cp > 1 else 0
    dtype = getattr(torch, setup.precision_recipe.activation_dtype)
    with fake_world(layout.ranks, rank), measuring():
        model = build_model_with_loss(
            spec, device="meta", dtype=dtype, kernels=setup.kernels, mtp=bool(setup.mtp), loss_chunk=setup.loss_chunk
        )
        meshes = build_meshes(layout, "meta")
        if meshes.tp is not None:
            divide_tensors(model, layout, meshes.tp)
        if meshes.ep is not None:
            divide_experts(model, layout, meshes.ep)
        if meshes.cp is not None:
            divide_positions(model, meshes.cp)
        set_recompute(model, setup.recompute)
        shape = setup.micro_batch_size, setup.sequence_length // layout.cp
        ids = [torch.empty(shape, dtype=torch.long, device="meta") for _ in range(2 + 2 * mtp_layers)]
        token_ids, labels, *others = ids
        further = list(zip(others[::2], others[1::2], strict=True)) if layout.cp > 1 else None
        tables = model.model.rotary_tables(token_ids)
        inputs = [*ids, *(table for pair in tables for table in pair)]
        with loss_context(layout), RankCurve(model, inputs) as curve:
            for _ in range(setup.micro_batches):
                loss = model(token_ids, labels, tables=tables, further=further)
                loss.backward()
        return curve.points


@contextmanager
def _curves(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tape]]:
    tapes: list[Tape] = []

    class SimulatedCurve(Tape):
        def __init__(self, *, grad: bool) -> None:
            super().__init__(grad=grad)
            self.points: list[int] = []
            tapes.append(self)

        def born(self, *sizes: Size) -> tuple[Array, ...]:
            arrays = super().born(*sizes)
            self.points.append(self.live)
            return arrays

    with monkeypatch.context() as patch:
        patch.setattr(step, "Tape", SimulatedCurve)
        yield tapes


def simulated_curve(
    spec: ModelSpec, setup: Setup, layout: Layout, monkeypatch: pytest.MonkeyPatch, context_rank: int = 0
) -> list[int]:
    """The curve of the simulation."""
    with _curves(monkeypatch) as tapes:
        profile = simulate(spec, setup, step=True, layout=layout, context_rank=context_rank).step_profile
    assert profile is not None
    assert profile.inputs is not None
    (tape,) = tapes
    points: list[int] = tape.points  # type: ignore[attr-defined]
    of_inputs = points.index(profile.inputs) + 1
    return [point - profile.inputs for point in points[of_inputs:]]
