"""Slices, groups, states and classes of ranks, by hand."""

from typing import get_args

import pytest
import torch
from torch import nn
from torch.distributed.fsdp._fully_shard._fsdp_init import _get_managed_modules, _get_managed_states

from counting.formulas.layouts.formats import ALL_BF16, ALL_FP32, WITH_POLICY, Stored, formats, stored
from counting.formulas.layouts.groups import LayerShapes, group_of, layer_shapes, outside_shapes
from counting.formulas.layouts.sharding import Sharding, data_sharding, expert_sharding
from counting.formulas.layouts.shards import Tensor, Update, rank_shares, updated_numbers
from counting.ranks.profile import RankShare
from counting.recipes import ModelStates, find_optimizer
from counting.setup import Setup
from tests.counting.formulas.layouts.cases import layout_of
from tests.shrunken import DEEPSEEK_V3, FAMILIES, GPT_OSS, LLAMA
from torch_models.builder import build
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Grouping

BY_ROWS = Sharding(4, 1, "fsdp", "dp")
BY_COLUMNS = Sharding(4, 1, "expert_fsdp", "expert_dp", second_dimension=True)


@pytest.mark.parametrize(
    ("shape", "stored_numbers", "updated"),
    [
        ((8, 3), 6, (6, 6, 6, 6)),  # 2 rows of 3 on each of 4 ranks
        ((9, 3), 9, (9, 9, 9, 0)),  # ceil(9 / 4) = 3 rows: the last rank has none, and stores 3 rows of padding
        ((6,), 2, (2, 2, 2, 0)),
        ((3, 5), 5, (5, 5, 5, 0)),
        ((7, 2), 4, (4, 4, 4, 2)),  # 2 + 2 + 2 + 1 rows
    ],
)
def test_rows_of_each_rank(shape: tuple[int, ...], stored_numbers: int, updated: tuple[int, ...]) -> None:
    assert BY_ROWS.stored(shape) == stored_numbers
    assert tuple(BY_ROWS.updated(shape, shard) for shard in range(4)) == updated
    changes = {shard for shard in range(1, 4) if updated[shard] != updated[shard - 1]}
    assert changes <= BY_ROWS.starts(shape)


def test_columns_of_each_rank() -> None:
    """2 experts of 8 x 3 on 4 ranks: 8 / 4 = 2 of 8 for each, of both experts: 2 x 2 x 3 numbers."""
    assert BY_COLUMNS.stored((2, 8, 3)) == 12
    assert [BY_COLUMNS.updated((2, 8, 3), shard) for shard in range(4)] == [12, 12, 12, 12]
    assert BY_COLUMNS.starts((2, 8, 3)) == set()


def test_how_experts_are_sharded() -> None:
    """64 ranks with ep 8: 8 ranks for each stack of experts; with fewer than 64 experts they divide the columns."""
    assert expert_sharding(layout_of(fsdp=64, ep=8), 64) == Sharding(8, 1, "expert_fsdp", "expert_dp", False, True)
    assert expert_sharding(layout_of(fsdp=64, ep=8), 63).second_dimension
    assert expert_sharding(layout_of(dp=8, fsdp=8, ep=16), 64)[:2] == (1, 4)
    assert data_sharding(layout_of(dp=8, fsdp=64, ep=8)) == Sharding(64, 8, "fsdp", "dp")


def test_bytes_of_a_group() -> None:
    """A matrix of 9 x 3 and a vector of 6 on 4 ranks, mixed: 9 + 2 = 11 numbers are stored on each rank.

    Gathered: 4 x 11 numbers in 16 bits, 88 bytes, of which a rank's converted part has 22. Reduced: 4 x 11 in fp32, 176
    bytes, of which a rank gets 44. Gradients are not padded: 27 and 6 numbers in 16 bits.
    """
    group = group_of(((9, 3), (6,)), BY_ROWS, WITH_POLICY)
    assert (group.gathered, group.shard_copy) == (88, 22)
    assert (group.reduce_input, group.reduce_output) == (176, 44)
    assert (group.tensors, group.all_tensors) == ((54, 12), 66)
    assert (group.accumulated, group.all_accumulated) == ((108, 24), 132)


def test_bytes_of_a_group_in_one_format() -> None:
    """The same without a policy: nothing is converted."""
    group = group_of(((9, 3), (6,)), BY_ROWS, ALL_FP32)
    assert (group.gathered, group.shard_copy, group.reduce_input) == (176, 0, 176)
    assert group.tensors == group.accumulated == (108, 24)
    assert group_of(((9, 3), (6,)), BY_ROWS, ALL_BF16).reduce_input == 88


def test_states_of_a_rank() -> None:
    """A norm of 4,096 on 100 ranks: 41 numbers of 4 bytes, as many of gradients, 2 x 164 + 4 of AdamW's state."""
    sharding = Sharding(100, 1, "fsdp", "dp")
    update = Update(stored(Setup(), sharded=True), find_optimizer("adamw"))
    assert update.states([Tensor((4096,), sharding)]) == ModelStates(weights=164, gradients=164, masters=0, moments=332)
    assert updated_numbers([Tensor((4096,), sharding)]) == 41


@pytest.mark.parametrize(
    ("optimizer", "bytes_of_ten", "temporary"),
    [("adamw", 84, 0), ("adamw-foreach", 80, 40), ("sgd", 0, 0), ("sgd-momentum", 40, 0)],
)
def test_optimizers(optimizer: str, bytes_of_ten: int, temporary: int) -> None:
    """10 numbers in fp32: two moments, and a step count if the kernel is fused; the roots of the second moments."""
    update = Update(stored(Setup(optimizer=optimizer), sharded=True), find_optimizer(optimizer))
    one = Sharding(1, 2, "fsdp", "dp")
    assert update.moment_bytes(10) == bytes_of_ten
    assert update.temporary_bytes([([Tensor((10,), one)], 1)]) == temporary


def test_states_without_sharding() -> None:
    """With tensor parallelism alone the recipe of one device: 2 + 2 + 4 + 8 bytes, and gradients are converted."""
    assert stored(Setup(), sharded=False) == Stored(2, 2, 4, 4, False)
    update = Update(stored(Setup(), sharded=False), find_optimizer("adamw"))
    one = Sharding(1, 1, "fsdp", "dp")
    tensors = [Tensor((10,), one), Tensor((4, 3), one)]
    assert update.states(tensors) == ModelStates(weights=44, gradients=44, masters=88, moments=176)
    assert update.temporary_bytes([(tensors, 5)]) == 48  # of the larger one
    together = Update(stored(Setup(), sharded=False), find_optimizer("adamw-foreach"))
    assert together.temporary_bytes([(tensors, 5)]) == 5 * 22 * (4 + 4)
    apart = Update(stored(Setup(precision="mixed-fp32-gradients"), sharded=False), find_optimizer("adamw"))
    assert apart.temporary_bytes([(tensors, 5)]) == 0
    assert formats(Setup(precision="mixed-fp32-gradients")) == WITH_POLICY


def test_classes_of_ranks() -> None:
    """5 rows of 2 and 3 rows of 1 on 4 ranks, each tensor twice; c is 2 and 1.

    Ranks 0 and 1 have 4 + 1 numbers, rank 2 has 2 + 1, rank 3 none. There are two replicas and tp 2: 4 ranks for each.
    Moments: 8 bytes for each number, and 4 for each of two tensors, twice.
    """
    layout = layout_of(dp=2, fsdp=4, tp=2)
    sharding = data_sharding(layout)
    update = Update(stored(Setup(), sharded=True), find_optimizer("adamw"))
    groups = [([Tensor((5, 2), sharding), Tensor((3, 1), sharding)], 2)]
    assert rank_shares(groups, layout, update) == (
        RankShare(count=8, first_rank=0, parameters=10, moments=96),
        RankShare(count=4, first_rank=4, parameters=6, moments=64),
        RankShare(count=4, first_rank=6, parameters=0, moments=16),
    )


def test_classes_with_divided_experts() -> None:
    """8 ranks, ep 2: neighbours have different experts and the same slice of them, 3 experts on 4 ranks: 1, 1, 1, 0.

    A vector of 5 numbers is on the ranks 0 to 4. An expert has 10 numbers.
    """
    layout = layout_of(fsdp=8, ep=2)
    update = Update(stored(Setup(optimizer="sgd"), sharded=True), find_optimizer("sgd"))
    by_experts = expert_sharding(layout, 6)._replace(second_dimension=False)
    groups = [([Tensor((3, 10), by_experts), Tensor((5,), data_sharding(layout))], 1)]
    assert [(share.first_rank, share.count, share.parameters) for share in rank_shares(groups, layout, update)] == [
        (0, 5, 11),
        (5, 1, 10),
        (6, 2, 0),
    ]


def test_order_of_a_layers_tensors() -> None:
    """Children before the module's own parameters: gpt-oss's sinks follow the projections of attention."""
    layer = spec_from_fields(GPT_OSS, "shrunken").layers[0]
    shapes = layer_shapes(layer).layer
    heads = layer.attention.num_attention_heads
    assert shapes.index((heads,)) == 9  # norm; q, k, v and o with biases; sinks
    assert shapes[0] == (layer.hidden_size,)


def managed(*modules: nn.Module) -> list[nn.Parameter]:
    """The trained parameters of the group that fully_shard makes of these modules, in its order."""
    found, _ = _get_managed_states(_get_managed_modules(modules))
    return [parameter for parameter in found if parameter.requires_grad]


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_have_fully_shards_order(family: str) -> None:
    spec = spec_from_fields(FAMILIES[family], "shrunken")
    with torch.device("meta"):
        model = build(FAMILIES[family])
    inner: set[nn.Parameter] = set()
    for layer, module in zip(spec.layers, model.model.layers, strict=True):
        parameters = managed(module)
        inner.update(parameters)
        assert layer_shapes(layer).layer == tuple(tuple(parameter.shape) for parameter in parameters)
    decoder = model.model
    modules = {"model": model, "embedding": decoder.embed_tokens, "norm": decoder.norm, "head": model.lm_head}
    for grouping in get_args(Grouping):
        for names, shapes in outside_shapes(spec, grouping).items():
            outer = [each for each in managed(*(modules[name] for name in names)) if each not in inner]
            assert shapes == tuple(tuple(parameter.shape) for parameter in outer)


def test_experts_apart() -> None:
    layer = spec_from_fields(DEEPSEEK_V3, "shrunken").layers[-1]
    whole, apart = layer_shapes(layer), layer_shapes(layer, 4)
    assert isinstance(whole, LayerShapes)
    assert whole.experts == ()
    assert apart.experts == ((4, 48, 64), (4, 64, 24))  # 16 experts on 4 ranks; gate and up of 24 are one matrix
    assert sorted((*apart.layer, (16, 48, 64), (16, 64, 24))) == sorted(whole.layer)
    assert apart.num_experts == 16


@pytest.mark.parametrize("tied", [False, True])
def test_groups_outside_the_layers(tied: bool) -> None:
    spec = spec_from_fields(LLAMA | {"tie_word_embeddings": tied}, "shrunken")
    words, norm = (96, 64), (64,)
    head = () if tied else (words,)
    assert outside_shapes(spec, "layers") == {("model",): (words, norm, *head)}
    groups = outside_shapes(spec, "torchtitan")
    if tied:
        assert groups == {("embedding", "norm", "head"): (words, norm)}
    else:
        assert groups == {("embedding",): (words,), ("norm", "head"): (norm, words)}
