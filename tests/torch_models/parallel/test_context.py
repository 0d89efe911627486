"""Context parallelism on gloo processes, with CUDA's kernels as plain arithmetic: it trains as the undivided model."""

from dataclasses import replace
from typing import Any

import pytest

from tests.torch_models.ecosystem.training_steps import Way
from tests.torch_models.parallel.ring_steps import assert_trains_as_undivided
from tests.worlds import World

IN_FP32 = Way()
FULL = replace(IN_FP32, recompute="full")
SELECTIVE = replace(IN_FP32, recompute="selective", micro_batches=2)

ON_TWO = [
    ("llama", 12, {"cp": 2}, IN_FP32),
    ("deepseek_v3", 128, {"cp": 2}, FULL),
    ("glm4_moe", 20, {"cp": 2, "ep": 2}, SELECTIVE),
]
ON_FOUR = [
    ("qwen3", 24, {"cp": 4}, SELECTIVE),
    ("llama", 12, {"cp": 2, "fsdp": 2}, FULL),
    ("olmo2", 12, {"cp": 2, "dp": 2}, IN_FP32),
    ("deepseek_v3", 128, {"cp": 2, "tp": 2}, replace(IN_FP32, expert_width=32)),
    ("qwen3_moe", 16, {"cp": 2, "fsdp": 2, "ep": 4}, IN_FP32),
]


@pytest.mark.parametrize(("family", "length", "fields", "way"), ON_TWO)
def test_two_ranks_train_as_one(family: str, length: int, fields: dict[str, Any], way: Way, two_ranks: World) -> None:
    assert_trains_as_undivided(two_ranks, family, length, fields, way)


@pytest.mark.parametrize(("family", "length", "fields", "way"), ON_FOUR)
def test_four_ranks_train_as_one(family: str, length: int, fields: dict[str, Any], way: Way, four_ranks: World) -> None:
    assert_trains_as_undivided(four_ranks, family, length, fields, way)
