"""Clipped gradients on gloo processes: every axis, alone and with others, trains as one device that clips its own."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.torch_models.ecosystem.training_steps import Way
from tests.torch_models.parallel import divided_steps, pipeline_steps, ring_steps
from tests.torch_models.parallel.divided_steps import IN_FP32, IN_FP64
from tests.worlds import World
from torch_models.errors import ArgumentError
from torch_models.parallel.clipping import clip_gradients
from torch_models.parallel.mesh import Meshes

MAX_NORM = 0.01
CLIPPED, CLIPPED_IN_FP32 = replace(IN_FP64, max_norm=MAX_NORM), replace(IN_FP32, max_norm=MAX_NORM)


@pytest.mark.parametrize(
    ("family", "fields", "way"),
    [
        ("gpt_oss", {"fsdp": 2}, CLIPPED),
        ("llama", {"dp": 2}, CLIPPED),
        pytest.param("smollm", {"fsdp": 2, "zero": 1}, replace(CLIPPED, micro_batches=2), marks=pytest.mark.sweep),
        ("deepseek_v3", {"tp": 2}, CLIPPED),
        pytest.param("gpt_oss", {"tp": 2, "sequence_parallel": False}, CLIPPED, marks=pytest.mark.sweep),
        ("qwen3_moe", {"dp": 2, "ep": 2}, CLIPPED_IN_FP32),
    ],
    ids=["fsdp", "dp", "zero1", "tp", "tp-without_sp", "ep"],
)
def test_two_ranks_train_as_one(family: str, fields: dict[str, Any], way: Way, two_ranks: World) -> None:
    divided_steps.assert_trains_as_undivided(two_ranks, family, fields, way)


@pytest.mark.parametrize(
    ("family", "fields", "way"),
    [
        pytest.param("llama", {"dp": 2, "fsdp": 2}, CLIPPED, marks=pytest.mark.sweep),
        ("olmo2", {"fsdp": 2, "tp": 2}, CLIPPED),
        ("gpt_oss", {"fsdp": 4, "ep": 2}, CLIPPED),
        ("deepseek_v3", {"dp": 2, "fsdp": 2, "ep": 4}, CLIPPED_IN_FP32),
    ],
    ids=["hsdp", "fsdp-tp", "fsdp-ep", "dp-fsdp-ep"],
)
def test_four_ranks_train_as_one(family: str, fields: dict[str, Any], way: Way, four_ranks: World) -> None:
    divided_steps.assert_trains_as_undivided(four_ranks, family, fields, way)


@pytest.mark.parametrize(
    ("family", "axes", "tolerance"),
    [
        pytest.param("llama", {"pp": 2}, 1e-12, marks=pytest.mark.sweep),
        # The last stage has the embedding again, and both have the sum of their gradients: it counts once.
        ("deepseek_v3", {"pp": 2}, 1e-5),
        ("deepseek_v3", {"pp": 2, "schedule": "dualpipev"}, 1e-5),
    ],
    ids=["pp", "pp-two_embeddings", "pp-two_embeddings_on_a_rank"],
)
def test_stages_train_as_one_model(family: str, axes: dict[str, Any], tolerance: float, two_ranks: World) -> None:
    way = replace(CLIPPED, micro_batches=4)
    pipeline_steps.assert_trains_as_undivided(two_ranks, family, axes, way, tolerance)


@pytest.mark.parametrize(
    ("family", "axes"), [("deepseek_v3", {"pp": 2, "fsdp": 2}), ("mixtral", {"pp": 2, "fsdp": 2, "ep": 2})]
)
def test_divided_stages_train_as_one_model(family: str, axes: dict[str, Any], four_ranks: World) -> None:
    way = replace(CLIPPED_IN_FP32, micro_batches=3)
    pipeline_steps.assert_trains_as_undivided(four_ranks, family, axes, way, 1e-5)


def test_ranks_of_cp_train_as_one(two_ranks: World) -> None:
    ring_steps.assert_trains_as_undivided(two_ranks, "llama", 12, {"cp": 2}, CLIPPED_IN_FP32)


def linear(gradient: list[float]) -> nn.Linear:
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.tensor([gradient], dtype=torch.float32)
    return layer


def test_by_hand_on_one_device() -> None:
    """Gradients (3, 4) and (0, 12) have the norm sqrt(9 + 16 + 144) = 13; clipped to 1.3 they are a tenth."""
    layers = [linear([3, 4]), linear([0, 12])]
    assert clip_gradients(layers, Meshes(), 1.3) == 13
    found = [layer.weight.grad for layer in layers]
    torch.testing.assert_close(found, [torch.tensor([[0.3, 0.4]]), torch.tensor([[0.0, 1.2]])])


def test_smaller_gradients_are_left() -> None:
    layer = linear([3, 4])
    assert clip_gradients(layer, Meshes(), 13) == 5
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[3.0, 4.0]]), rtol=0, atol=0)


@pytest.mark.parametrize("max_norm", [0, -1.0, float("nan"), True, "1"])
def test_a_norm_that_is_none(max_norm: Any) -> None:
    with pytest.raises(ArgumentError, match=r"max_norm = .*: must be a number above 0"):
        clip_gradients(linear([3, 4]), Meshes(), max_norm)


def test_no_gradients() -> None:
    with pytest.raises(ArgumentError, match="have no gradients: call it after backward"):
        clip_gradients(nn.Linear(2, 1), Meshes(), 1.0)
