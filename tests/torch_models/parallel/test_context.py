"""Context parallelism on gloo processes, with CUDA's kernels as plain arithmetic: it trains as the undivided model."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.torch_models.ecosystem.training_steps import Way
from tests.torch_models.parallel.ring_steps import (
    assert_trains_as_undivided,
    train_divided,
    train_undivided,
    whole_batch,
)
from tests.worlds import World
from torch_models.errors import ArgumentError
from torch_models.parallel.context import batch_of_rank, own_positions

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


def test_what_a_rank_has_of_a_sequence() -> None:
    """Rank r of c has the chunks r and 2 c - 1 - r of 2 c; together the ranks have every position once."""
    positions = torch.arange(24)
    parts = [own_positions(positions, rank, 3, 0).tolist() for rank in range(3)]
    assert parts[0] == [0, 1, 2, 3, 20, 21, 22, 23]
    assert parts[2] == [8, 9, 10, 11, 12, 13, 14, 15]
    assert sorted(position for part in parts for position in part) == positions.tolist()


def test_a_batch_is_not_cut_without_ranks_that_divide_it() -> None:
    token_ids, labels = whole_batch(0, 0, 0, 7, "cpu")
    assert batch_of_rank(token_ids, labels, None, mtp_layers=1) == (token_ids, labels, None)


def test_a_length_that_the_ranks_do_not_divide_is_refused() -> None:
    rule = r"sequence_length = 30: must be a multiple of 2 x cp \(8\)"
    with pytest.raises(ArgumentError, match=rule):
        own_positions(torch.zeros(2, 30), 0, 4, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("family", "length"), [("llama", 64), ("deepseek_v3", 128)])
def test_cuda_kernels_train_as_one(family: str, length: int, two_ranks: World) -> None:
    """Two processes on the device, in bf16, whose rounding depends on the blocks: as near as bf16 is."""
    way = Way(device="cuda", dtype=torch.bfloat16, continuous=True)
    expected = train_undivided(family, length, {"cp": 2}, way)
    for found in two_ranks.run(train_divided, family, length, {"cp": 2}, way):
        torch.testing.assert_close(found.losses[0], expected.losses[0], rtol=1e-2, atol=0, check_dtype=False)
        for name, gradient in expected.gradients.items():
            assert (found.gradients[name] - gradient).norm() <= 0.1 * gradient.norm(), name
