"""Every axis, alone and with others, on gloo processes: a divided model trains as the undivided one."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.shrunken import FAMILIES, WITHOUT_TP
from tests.torch_models.ecosystem.training_steps import Way, train_plain
from tests.torch_models.parallel.divided_steps import (
    IN_FP32,
    IN_FP64,
    Fields,
    assert_trains_as_undivided,
    layout_of,
    train_divided,
)
from tests.worlds import World

TENSOR_PARALLEL = [family for family in FAMILIES if family not in WITHOUT_TP]
WITH_EXPERTS = [family for family, fields in FAMILIES.items() if any("expert" in name for name in fields)]
WITH_FOUR_KEY_HEADS = [
    *("llama", "olmo2", "olmo3", "gemma2", "gemma3_text", "deepseek_v2", "deepseek_v2_lite", "deepseek_v3", "kimi_k2"),
]
MIXED_EVENLY = [  # 8 or 16 experts
    *("qwen3_moe", "qwen2_moe", "minimax_m2", "glm4_moe", "deepseek_v2", "deepseek_v2_lite", "deepseek_v3", "kimi_k2"),
]

FULL = replace(IN_FP64, recompute="full")
SELECTIVE = replace(IN_FP64, recompute="selective")
PER_OP = replace(IN_FP64, recompute="per_op")
# Rows of ep are in fp32: where one rank of fsdp has a stack of experts, torch divides gradients in fp64 twice.
CHUNKED = replace(IN_FP64, loss_chunk=7)
EAGER = replace(IN_FP64, kernels="eager")
ACCUMULATED = replace(IN_FP64, micro_batches=2)

# layout, way, the families that `make test` trains so, and all that can be
Table = Mapping[str, tuple[Fields, Way, Iterable[str], Iterable[str]]]

ON_TWO: Table = {
    "fsdp": ({"fsdp": 2}, IN_FP64, ["gpt_oss", "deepseek_v32"], FAMILIES),
    "fsdp-layers": ({"fsdp": 2, "grouping": "layers"}, IN_FP64, ["deepseek_v3"], FAMILIES),
    "fsdp-zero2": ({"fsdp": 2, "zero": 2}, ACCUMULATED, ["smollm3"], FAMILIES),
    "fsdp-zero1": ({"fsdp": 2, "zero": 1}, ACCUMULATED, ["glm4_moe"], FAMILIES),
    "dp": ({"dp": 2}, IN_FP64, ["llama"], FAMILIES),
    "tp": (
        {"tp": 2},
        IN_FP64,
        ["gemma3_text", "olmo2", "gpt_oss", "llama4", "qwen2_moe", "deepseek_v2_lite", "deepseek_v3"],
        TENSOR_PARALLEL,
    ),
    "tp-without_sp": (
        {"tp": 2, "sequence_parallel": False},
        IN_FP64,
        ["gpt_oss", "minimax_m2", "deepseek_v3"],
        TENSOR_PARALLEL,
    ),
    "tp-full": ({"tp": 2}, FULL, [], TENSOR_PARALLEL),
    "tp-selective": ({"tp": 2}, SELECTIVE, ["gemma2"], TENSOR_PARALLEL),
    "tp-per_op": ({"tp": 2}, PER_OP, ["glm4_moe"], TENSOR_PARALLEL),
    "tp-chunked": ({"tp": 2}, CHUNKED, ["deepseek_v3"], TENSOR_PARALLEL),
    "tp-eager": ({"tp": 2}, EAGER, [], TENSOR_PARALLEL),
    "tp-accumulated": ({"tp": 2}, ACCUMULATED, [], TENSOR_PARALLEL),
    "ep": ({"fsdp": 2, "ep": 2}, IN_FP32, ["gpt_oss", "llama4"], WITH_EXPERTS),
    "ep-replicas": ({"dp": 2, "ep": 2}, IN_FP32, ["qwen3_moe"], WITH_EXPERTS),
    "ep-full": ({"fsdp": 2, "ep": 2}, replace(IN_FP32, recompute="full"), ["deepseek_v3"], WITH_EXPERTS),
    "ep-per_op": ({"fsdp": 2, "ep": 2}, replace(IN_FP32, recompute="per_op"), ["gpt_oss"], WITH_EXPERTS),
    "ep-zero1": ({"fsdp": 2, "ep": 2, "zero": 1}, replace(IN_FP32, micro_batches=2), ["mixtral"], WITH_EXPERTS),
}
ON_FOUR: Table = {
    "hsdp": ({"dp": 2, "fsdp": 2}, IN_FP64, ["deepseek_v3"], FAMILIES),
    "tp": ({"tp": 4}, IN_FP64, ["deepseek_v3"], WITH_FOUR_KEY_HEADS),
    "fsdp-tp": ({"fsdp": 2, "tp": 2}, IN_FP64, ["smollm", "gpt_oss"], TENSOR_PARALLEL),
    "fsdp-tp-layers": ({"fsdp": 2, "tp": 2, "grouping": "layers"}, IN_FP64, [], TENSOR_PARALLEL),
    "fsdp-tp-zero1": ({"fsdp": 2, "tp": 2, "zero": 1}, ACCUMULATED, ["olmo2"], TENSOR_PARALLEL),
    "fsdp-tp-without_sp": ({"fsdp": 2, "tp": 2, "sequence_parallel": False}, IN_FP64, [], TENSOR_PARALLEL),
    "dp-tp": ({"dp": 2, "tp": 2}, FULL, ["glm4_moe"], TENSOR_PARALLEL),
    "fsdp-ep": ({"fsdp": 4, "ep": 2}, IN_FP64, ["gpt_oss"], WITH_EXPERTS),
    "fsdp-ep-whole": ({"fsdp": 4, "ep": 4}, IN_FP32, [], MIXED_EVENLY),
    "dp-fsdp-ep": ({"dp": 2, "fsdp": 2, "ep": 2}, replace(IN_FP32, recompute="full"), ["mixtral"], WITH_EXPERTS),
    "dp-fsdp-ep-beyond": ({"dp": 2, "fsdp": 2, "ep": 4}, IN_FP32, ["deepseek_v3"], MIXED_EVENLY),
}


def rows(table: Table) -> Iterator[Any]:
    """A row for each layout and family; those that `make test` leaves out are marked as a sweep."""
    for name, (fields, way, often, all_families) in table.items():
        for family in all_families:
            marks = [] if family in often else pytest.mark.sweep
            yield pytest.param(family, fields, way, id=f"{family}-{name}", marks=marks)


@pytest.mark.parametrize(("family", "fields", "way"), list(rows(ON_TWO)))
def test_two_ranks_train_as_one(family: str, fields: Fields, way: Way, two_ranks: World) -> None:
    assert_trains_as_undivided(two_ranks, family, fields, way)


@pytest.mark.parametrize(("family", "fields", "way"), list(rows(ON_FOUR)))
def test_four_ranks_train_as_one(family: str, fields: Fields, way: Way, four_ranks: World) -> None:
    assert_trains_as_undivided(four_ranks, family, fields, way)


@pytest.mark.parametrize("family", ["gpt_oss", pytest.param("mixtral", marks=pytest.mark.sweep)])
def test_more_ranks_than_experts_train_as_one(family: str, four_ranks: World) -> None:
    """The ranks of fsdp that have the one expert of a rank of ep divide the second dimension of its matrices."""
    assert_trains_as_undivided(four_ranks, family, {"fsdp": 4, "ep": 2}, replace(IN_FP64, experts=2))


@pytest.mark.sweep
@pytest.mark.parametrize("family", ["smollm", "gpt_oss", "deepseek_v3"])
def test_three_axes_train_as_one(family: str) -> None:
    with World(8) as world:
        assert_trains_as_undivided(world, family, {"dp": 2, "fsdp": 2, "tp": 2})


@pytest.mark.parametrize(
    ("family", "fields", "way"),
    [("olmo2", {"tp": 2}, IN_FP64), ("gpt_oss", {"fsdp": 2, "ep": 2}, IN_FP32)],
    ids=["tp", "ep"],
)
def test_adamw_makes_the_same_weights(family: str, fields: Fields, way: Way, two_ranks: World) -> None:
    """Fused AdamW takes parameters of several meshes at once."""
    assert_trains_as_undivided(two_ranks, family, fields, way, optimizer="adamw")


def test_adamw_makes_the_same_weights_on_four_ranks(four_ranks: World) -> None:
    assert_trains_as_undivided(four_ranks, "deepseek_v3", {"fsdp": 2, "tp": 2}, optimizer="adamw")


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("smollm", {"fsdp": 2, "tp": 2}),
        ("gpt_oss", {"fsdp": 4, "ep": 2}),
        ("deepseek_v3", {"dp": 2, "ep": 4, "fsdp": 2}),
    ],
    ids=["smollm-fsdp-tp", "gpt_oss-fsdp-ep", "deepseek_v3-dp-fsdp-ep"],
)
def test_bf16_of_fp32_shards(family: str, fields: Fields, four_ranks: World) -> None:
    """Products in bf16, whose rounding depends on what a rank has: the first gradients to one part in twenty."""
    way = Way(mixed_precision=True, continuous=True)
    expected = train_plain(family, way, layout_of(fields).data_ranks)
    for found in four_ranks.run(train_divided, family, fields, way, "sgd"):
        torch.testing.assert_close(found.losses[0], expected.losses[0], rtol=2e-3, atol=0)
        for name, gradient in expected.gradients.items():
            assert (found.gradients[name] - gradient).norm() <= 0.05 * gradient.norm(), name
