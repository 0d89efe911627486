"""Measured = real: a step in a group of gloo processes, on tensors with values, has the same bytes and collectives.

Every number of the profile is compared, on every rank: bytes of each stretch by category, traffic, FLOPs, states.
"""

from typing import Any

import pytest
import torch

from counting.measurements.meta_device import measuring
from counting.measurements.ranks.live_bytes import RankBytes
from counting.measurements.ranks.process import measure_model
from counting.measurements.ranks.rank import divided_model
from counting.measurements.ranks.stand_ins import local, without_caches_of_dtensor
from counting.ranks.shallow import Shallow
from counting.setup import Setup
from tests.counting.measurements.rank_runs import layout_of, resolved, whole
from tests.counting.measurements.ranks.real_ranks import balanced_routing, differences, profile_of_real_rank
from tests.shrunken import FAMILIES
from tests.worlds import World
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout
from torch_models.parallel.mesh import build_meshes

# Tokens of which the experts of each family get equally many rows.
LENGTHS = {"deepseek_v3": 32}

# Family, ranks, axes.
SMALL = [
    ("llama", 2, {"fsdp": 2}, {}),
    ("llama", 2, {"tp": 2}, {"clip_gradients": True}),
    ("mixtral", 2, {"fsdp": 2, "ep": 2, "grouping": "torchtitan"}, {"clip_gradients": True}),
]
MATRIX = [
    ("smollm", 2, {"fsdp": 2, "grouping": "torchtitan"}),
    ("deepseek_v3", 2, {"fsdp": 2, "zero": 2}),
    ("llama", 2, {"fsdp": 2, "zero": 1}),
    ("llama", 2, {"dp": 2, "fsdp": 1}),
    ("deepseek_v3", 3, {"fsdp": 3}),
    ("gpt_oss", 3, {"fsdp": 3, "zero": 2}),
    ("gemma2", 4, {"dp": 2, "fsdp": 2}),
    ("llama", 2, {"tp": 2, "sequence_parallel": False}),
    ("olmo2", 4, {"tp": 4}),
    ("llama", 4, {"fsdp": 2, "tp": 2}),
    ("qwen3", 4, {"dp": 2, "fsdp": 1, "tp": 2}),
    ("deepseek_v3", 2, {"fsdp": 2, "ep": 2}),
    ("mixtral", 4, {"fsdp": 4, "ep": 2}),
    ("mixtral", 4, {"dp": 2, "fsdp": 2, "ep": 2}),
    ("deepseek_v3", 4, {"dp": 2, "fsdp": 2, "ep": 4}),
]
SETUPS: list[dict[str, Any]] = [
    {},
    {"micro_batches": 3},
    {"recompute": "full", "loss_chunk": 8, "optimizer": "sgd-momentum"},
    {"recompute": "selective", "precision": "bf16", "micro_batch_size": 2},
    {"recompute": "per_op", "micro_batches": 2, "clip_gradients": True},
]


def compare(worlds: dict[int, World], family: str, ranks: int, axes: dict[str, Any], run: dict[str, Any]) -> None:
    spec = spec_from_fields(FAMILIES[family], family)
    setup = resolved(spec, **{"sequence_length": LENGTHS.get(family, 24), "kernels": "eager", **run})
    layout = layout_of(**axes)
    real = worlds[ranks].run(profile_of_real_rank, whole(spec), setup, layout)
    for rank, profile in enumerate(real):
        with balanced_routing():
            fake = measure_model(whole(spec), setup, layout, rank)
        assert differences(profile, fake) == []
        assert profile == fake


@pytest.mark.parametrize(("family", "ranks", "axes", "run"), SMALL)
def test_real_equals_fake(
    worlds: dict[int, World], family: str, ranks: int, axes: dict[str, Any], run: dict[str, Any]
) -> None:
    compare(worlds, family, ranks, axes, {"micro_batches": 2, **run})


@pytest.mark.sweep
@pytest.mark.parametrize("run", SETUPS, ids=str)
@pytest.mark.parametrize(("family", "ranks", "axes"), MATRIX)
def test_real_equals_fake_everywhere(
    worlds: dict[int, World], family: str, ranks: int, axes: dict[str, Any], run: dict[str, Any]
) -> None:
    compare(worlds, family, ranks, axes, run)


def update_of_divided_tensors(model: Shallow, setup: Setup, layout: Layout) -> tuple[int, int]:
    """Bytes of the state, and the peak of temporary tensors, of AdamW on the parameters as a user trains them."""
    with without_caches_of_dtensor(), measuring():
        device = torch.device("cpu")
        modules = divided_model(model.spec, setup, layout, build_meshes(layout, "cpu"), device)
        parameters = list(modules.parameters())
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer = torch.optim.AdamW(parameters, fused=True)
        optimizer.step()
        state = [local(tensor) for of_one in optimizer.state.values() for tensor in of_one.values()]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        with RankBytes([*parameters, *gradients, *state], lambda *op: None) as tracker:
            before = tracker.live
            tracker.watch()
            optimizer.step()
        return sum(tensor.nbytes for tensor in state), tracker.peak - before


@pytest.mark.parametrize("axes", [{"fsdp": 2}, {"dp": 2, "fsdp": 1}])
def test_update_of_divided_tensors(worlds: dict[int, World], axes: dict[str, Any]) -> None:
    """The update is measured on local tensors; on the DTensors of a real rank it stores and allocates the same."""
    spec = spec_from_fields(FAMILIES["llama"], "llama")
    setup, layout = resolved(spec, sequence_length=24), layout_of(**axes)
    profile = measure_model(whole(spec), setup, layout)
    found = worlds[2].run(update_of_divided_tensors, whole(spec), setup, layout)
    assert found == [(profile.shares[0].moments, profile.optimizer_step.memory.peak)] * 2
