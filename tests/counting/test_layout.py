"""The layout of one model's step: what is filled in, and what is refused, with the values that do."""

from typing import Any

import msgspec
import pytest

from counting.layout import MOST_VALUES_LISTED, NOT_ON_SHARDS, resolve_layout
from counting.recipes import OPTIMIZERS
from counting.setup import Setup, resolve
from tests.shrunken import DEEPSEEK_V3, LLAMA, MISTRAL
from torch_models import ArgumentError, read_spec
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout
from torch_models.parallel.checks import PADDED_ROWS
from torch_models.spec import LayerRun, MixtureOfExpertsSpec, ModelSpec

LLAMA_3 = read_spec("llama_3_8b")  # 32 heads, 8 key and value heads, 14,336 in the MLP, 128,256 tokens
DEEPSEEK = read_spec("deepseek_v3")  # 256 experts of 2,048, of which a token chooses 8
SMALL = spec_from_fields(LLAMA, "small")  # 8 heads, 112 in the MLP, 96 tokens
MIXTURE = spec_from_fields(DEEPSEEK_V3, "mixture")  # 16 experts of 24, 3 chosen
EIGHT_NODES = Layout(num_gpus=64, fsdp=8)


def resolved(layout: Layout, spec: ModelSpec = LLAMA_3, **setup: Any) -> Layout:
    return resolve_layout(layout, spec, resolve(Setup(**setup), spec))


def refusal(layout: Layout, spec: ModelSpec = LLAMA_3, **setup: Any) -> tuple[str, object, str]:
    with pytest.raises(ArgumentError) as caught:
        resolved(layout, spec, **setup)
    return caught.value.field, caught.value.value, caught.value.rule


# --- What is filled in -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "dp", "num_gpus"),
    [
        (Layout(), 1, 1),
        (Layout(num_gpus=1), 1, 1),
        (Layout(num_gpus=8), 8, 8),
        (Layout(fsdp=64), 1, 64),
        (EIGHT_NODES, 8, 64),
        (Layout(num_gpus=64, fsdp=4, tp=8), 2, 64),
        (Layout(dp=3, fsdp=4, tp=8), 3, 96),
        (Layout(num_gpus=96, dp=3, fsdp=4, tp=8), 3, 96),
        (Layout(fsdp=100), 1, 100),
    ],
)
def test_replicas_are_what_is_left(given: Layout, dp: int, num_gpus: int) -> None:
    layout = resolved(given)
    assert layout == msgspec.structs.replace(given, dp=dp, num_gpus=num_gpus, gpus_per_node=8)
    assert layout.ranks == num_gpus
    assert resolved(layout) == layout


def test_ranks_of_a_node_are_kept() -> None:
    assert resolved(Layout(fsdp=72, gpus_per_node=72)).gpus_per_node == 72


@pytest.mark.parametrize(
    ("ep", "expert_fsdp", "expert_replicas"), [(1, 8, 4), (2, 4, 4), (8, 1, 4), (16, 1, 2), (32, 1, 1)]
)
def test_experts_borrow_the_ranks_of_fsdp_then_those_of_dp(ep: int, expert_fsdp: int, expert_replicas: int) -> None:
    layout = resolved(Layout(dp=4, fsdp=8, ep=ep), DEEPSEEK)
    assert (layout.expert_fsdp, layout.expert_replicas) == (expert_fsdp, expert_replicas)


def test_the_largest_that_is_asked_for() -> None:
    layout = resolved(Layout(num_gpus=2048, fsdp=2048, ep=64), DEEPSEEK, sequence_length=4096, recompute="full")
    assert (layout.replicas, layout.expert_fsdp, layout.expert_replicas) == (1, 32, 1)


# --- The axes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "value", "rule"),
    [
        (Layout(num_gpus=10, fsdp=4), 10, "must be a multiple of fsdp (4): give 8 or 12, or other axes"),
        (Layout(num_gpus=3, fsdp=4), 3, "must be a multiple of fsdp (4): give 4, or other axes"),
        (
            Layout(num_gpus=100, fsdp=8, tp=8),
            100,
            "must be a multiple of fsdp x tp = 8 x 8 = 64: give 64 or 128, or other axes",
        ),
        (Layout(num_gpus=64, dp=2, fsdp=8), 64, "must be dp x fsdp = 2 x 8 = 16: leave out dp, or give 16"),
        (Layout(num_gpus=64, dp=2), 64, "must be dp (2): leave out dp, or give 2"),
        (Layout(num_gpus=64, dp=1), 64, "must be 1, the product of the axes: leave out dp, or give 1"),
        (
            Layout(dp=2**11, fsdp=2**10),
            2**21,
            "is dp x fsdp = 2048 x 1024 = 2097152, and the max is 1048576",
        ),
    ],
)
def test_products_that_are_not_the_number_of_gpus(layout: Layout, value: int, rule: str) -> None:
    assert refusal(layout) == ("num_gpus", value, rule)


@pytest.mark.parametrize("zero", [1, 2])
def test_zero_without_fsdp(zero: Any) -> None:
    rule = "says what fsdp divides, and fsdp is 1: leave it out, or give fsdp"
    assert refusal(Layout(dp=8, zero=zero)) == ("zero", zero, rule)
    assert resolved(Layout(fsdp=8, zero=zero)).zero == zero


def test_sequence_parallelism_without_tensor_parallelism() -> None:
    rule = "is a part of tensor parallelism, and tp is 1: leave it out, or give tp"
    assert refusal(Layout(fsdp=8, sequence_parallel=False)) == ("sequence_parallel", False, rule)
    assert resolved(Layout(tp=8, sequence_parallel=False)).sequence_parallel is False


def test_imbalance_without_expert_parallelism() -> None:
    rule = "is that of ranks that divide the experts, and ep is 1: leave it out, or give ep"
    assert refusal(Layout(fsdp=8, expert_imbalance=1.5), DEEPSEEK) == ("expert_imbalance", 1.5, rule)


def test_experts_are_divided_in_one_way() -> None:
    field, value, rule = refusal(Layout(fsdp=8, ep=8, tp=2), DEEPSEEK)
    assert (field, value) == ("ep", 8)
    assert rule.startswith("is not measured together with tp (2)")


# --- The step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("precision", "fp8", "give mixed, mixed-fp32-gradients, bf16 or fp32"),
        ("optimizer", "adafactor", "rows and columns"),
        ("optimizer", "muon", "whole matrices"),
        ("optimizer", "adamw-8bit", "meta device"),
        ("zero_gradients", "in_place", "not measured on ranks yet"),
    ],
)
def test_what_is_not_measured_on_ranks(field: str, value: Any, words: str) -> None:
    found, shown, rule = refusal(EIGHT_NODES, **{field: value})
    assert (found, shown) == (field, value)
    assert words in rule


def test_every_other_recipe_is_measured() -> None:
    assert set(NOT_ON_SHARDS) < {optimizer.name for optimizer in OPTIMIZERS}
    for optimizer in OPTIMIZERS:
        if optimizer.name not in NOT_ON_SHARDS:
            assert resolved(EIGHT_NODES, optimizer=optimizer.name).replicas == 8
    for precision in ("mixed", "mixed-fp32-gradients", "bf16", "fp32"):
        assert resolved(EIGHT_NODES, precision=precision).replicas == 8


# --- Tensor parallelism and the model --------------------------------------------------------------------------------


def without(fields: dict[str, Any], **others: Any) -> ModelSpec:
    return spec_from_fields(fields | others, "changed")


@pytest.mark.parametrize(
    ("spec", "tp", "rule"),
    [
        (LLAMA_3, 3, "must divide num_attention_heads (32): give 2, 4 or 8"),
        (LLAMA_3, 16, "must divide num_key_value_heads (8): give 2, 4 or 8"),
        (
            without(LLAMA, intermediate_size=88, vocab_size=104),
            16,
            "must divide num_attention_heads (8): give 2, 4 or 8",
        ),
        (without(LLAMA, intermediate_size=100), 8, "must divide intermediate_size (100): give 2 or 4"),
        (without(LLAMA, vocab_size=100), 8, "must divide vocab_size (100): give 2 or 4"),
        (without(LLAMA, vocab_size=101), 2, "must divide vocab_size (101): nothing but 1 does for all that it divides"),
        (without(MISTRAL, num_key_value_heads=1), 2, "must divide num_key_value_heads (1): nothing but 1 does for all"),
        (MIXTURE, 8, "must divide num_attention_heads (4): nothing but 1 does for all that it divides"),
        (
            without(DEEPSEEK_V3, moe_intermediate_size=48),
            4,
            "must divide the intermediate_size of an expert (48) in multiples of 8: give 2",
        ),
        (
            without(DEEPSEEK_V3, moe_intermediate_size=64, intermediate_size=110),
            4,
            "must divide intermediate_size (110): give 2",
        ),
    ],
)
def test_what_tp_must_divide(spec: ModelSpec, tp: int, rule: str) -> None:
    field, value, found = refusal(Layout(tp=tp), spec)
    assert (field, value) == ("tp", tp)
    assert found.startswith(rule)


def test_parts_of_an_expert_are_rows_of_a_grouped_product() -> None:
    spec = without(DEEPSEEK_V3, moe_intermediate_size=48)
    assert refusal(Layout(tp=4), spec)[2].endswith("in multiples of 8: give 2")
    assert resolved(Layout(tp=2), spec).tp == 2


def test_shared_experts_are_divided_too() -> None:
    mixture = MIXTURE.layer_runs[1].layer.feed_forward
    assert isinstance(mixture, MixtureOfExpertsSpec)
    assert mixture.shared_experts is not None
    narrow = msgspec.structs.replace(mixture.shared_experts, intermediate_size=50)
    wide = msgspec.structs.replace(mixture.expert, intermediate_size=64)
    changed = msgspec.structs.replace(mixture, shared_experts=narrow, expert=wide)
    layer = msgspec.structs.replace(MIXTURE.layer_runs[1].layer, feed_forward=changed)
    spec = msgspec.structs.replace(MIXTURE, layer_runs=(LayerRun(layer=layer, count=2),), mtp_layers=())
    rule = "must divide the intermediate_size of the shared experts (50): give 2"
    assert refusal(Layout(tp=4), spec) == ("tp", 4, rule)
    assert resolved(Layout(tp=2), spec).tp == 2


def test_layers_of_multi_token_prediction_are_divided_where_they_are_trained() -> None:
    spec = without(DEEPSEEK_V3, num_nextn_predict_layers=1, moe_intermediate_size=48)
    dense = msgspec.structs.replace(spec, layer_runs=spec.layer_runs[:1])
    assert refusal(Layout(tp=4), dense)[0] == "tp"
    assert resolved(Layout(tp=4), dense, mtp=False).tp == 4


def test_sequence_parallelism_divides_the_sequence() -> None:
    rule = "must divide the sequence length (1002), which sequence parallelism divides: give 2; or set "
    assert refusal(Layout(tp=8), sequence_length=1002) == ("tp", 8, f"{rule}sequence_parallel to false")
    assert resolved(Layout(tp=8, sequence_parallel=False), sequence_length=1002).tp == 8


def test_sequence_parallelism_divides_the_part_of_a_rank_of_cp() -> None:
    rule = refusal(Layout(tp=8, cp=4), sequence_length=1000)[2]
    assert rule.startswith(
        "must divide a rank's part of the sequence, of cp 4 (250), which sequence parallelism divides"
    )
    assert rule.endswith(": give 2; or set sequence_parallel to false")
    assert resolved(Layout(tp=8, cp=5), sequence_length=1000 // 5 * 8).cp == 5


def test_values_that_do_leave_whole_replicas() -> None:
    assert refusal(Layout(num_gpus=12, fsdp=3, tp=3))[2] == "must divide num_attention_heads (32): give 2 or 4"
    assert refusal(Layout(num_gpus=12, dp=1, fsdp=3, tp=3))[2] == "must divide num_attention_heads (32): give 2, 4 or 8"


def test_few_values_are_listed() -> None:
    spec = without(LLAMA, num_attention_heads=64, hidden_size=128, intermediate_size=2**12, vocab_size=2**12)
    spec = msgspec.structs.replace(spec, vocab_size=2**12 * 9)
    many = without(LLAMA, num_attention_heads=720, hidden_size=1440, intermediate_size=720, vocab_size=720, head_dim=2)
    rule = refusal(Layout(tp=7, sequence_parallel=False), many)[2]
    assert rule == "must divide num_attention_heads (720): give 4, 5, 6, 8, 9, 10, 12 or 15"
    assert rule.count(",") + 2 == MOST_VALUES_LISTED
    assert refusal(Layout(tp=3), spec)[2].endswith("give 2, 4, 8, 16, 32 or 64")


# --- Context parallelism and the model -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cp", "length", "rule"),
    [
        (3, 8192, "must divide the sequence length (8192) in multiples of 2: give 2, 4, 8, 16, 32, 64, 128 or 256"),
        (4, 60, "must divide the sequence length (60) in multiples of 2: give 2, 3, 5, 6, 10, 15 or 30"),
        (
            2,
            1001,
            "must divide the sequence length (1001) in multiples of 2: give a sequence length that is a multiple of 4",
        ),
    ],
)
def test_each_rank_has_a_part_from_the_front_and_one_from_the_back(cp: int, length: int, rule: str) -> None:
    assert refusal(Layout(cp=cp), sequence_length=length) == ("cp", cp, rule)


def test_values_of_cp_leave_whole_replicas_too() -> None:
    assert refusal(Layout(num_gpus=12, cp=3), sequence_length=8)[2].endswith("in multiples of 2: give 2 or 4")
    assert refusal(Layout(num_gpus=6, cp=3), sequence_length=8)[2].endswith("in multiples of 2: give 2")


@pytest.mark.parametrize(
    ("config", "has"), [("gemma_2_9b", "a window"), ("gpt_oss_20b", "a window"), ("llama_4_scout", "chunks")]
)
def test_attention_that_the_ring_has_not(config: str, has: str) -> None:
    rule = f"is torch's ring attention, and attention here has {has}, which it has not: leave it out"
    assert refusal(Layout(cp=2), read_spec(config), sequence_length=64) == ("cp", 2, rule)


def test_a_bound_and_sinks_are_not_in_the_ring() -> None:
    run = LLAMA_3.layer_runs[0]
    for field, value, has in (("logit_softcap", 50.0, "a cap on its scores"), ("sinks", True, "sinks")):
        attention = msgspec.structs.replace(run.layer.attention, **{field: value})
        layer = msgspec.structs.replace(run.layer, attention=attention)
        spec = msgspec.structs.replace(LLAMA_3, layer_runs=(LayerRun(layer=layer, count=32),))
        assert f"attention here has {has}, which it has not" in refusal(Layout(cp=2), spec)[2]


def test_the_ring_has_fused_kernels() -> None:
    rule = "is not run by torch's ring attention (cp 2): give fused"
    assert refusal(Layout(cp=2), kernels="eager") == ("kernels", "eager", rule)
    assert resolved(Layout(cp=2, fsdp=4)).ranks == 8


def test_chunks_of_latent_attention_have_whole_rows_of_its_kernel() -> None:
    assert PADDED_ROWS == 32
    rule = "must divide the sequence length (96) in multiples of 64: give a sequence length that is a multiple of 128"
    assert refusal(Layout(cp=2), DEEPSEEK, sequence_length=96) == ("cp", 2, rule)
    assert refusal(Layout(cp=3), DEEPSEEK, sequence_length=256)[2].endswith("in multiples of 64: give 2 or 4")
    assert resolved(Layout(cp=2), DEEPSEEK, sequence_length=128).cp == 2


def test_zero_is_of_the_ranks_of_cp_too() -> None:
    assert resolved(Layout(cp=2, zero=2)).zero == 2


# --- Expert parallelism and the model --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "rule"),
    [
        (Layout(fsdp=8, ep=3), "must divide the number of experts (256): give 2, 4 or 8"),
        (Layout(fsdp=12, ep=8), "must divide fsdp (12), whose ranks it borrows: give 2 or 4"),
        (Layout(fsdp=8, ep=64), "must be at most dp x fsdp (8), whose ranks it borrows: give 2, 4 or 8"),
        (Layout(ep=8), "must be at most dp x fsdp (1), whose ranks it borrows: nothing but 1 does"),
        (Layout(dp=8, fsdp=6, ep=16), "must divide fsdp (6), whose ranks it borrows, or be a multiple of it: give 2"),
        (Layout(dp=3, fsdp=4, ep=8), "must divide dp x fsdp (12), whose ranks it borrows: give 2 or 4"),
        (Layout(fsdp=6, cp=2, ep=8), "must divide fsdp x cp (12), whose ranks it borrows: give 2 or 4"),
        (Layout(dp=3, fsdp=2, cp=2, ep=8), "must divide dp x fsdp x cp (12), whose ranks it borrows: give 2 or 4"),
    ],
)
def test_ep_borrows_ranks(layout: Layout, rule: str) -> None:
    field, value, found = refusal(layout, DEEPSEEK, sequence_length=128)
    assert (field, value) == ("ep", layout.ep)
    assert found.startswith(rule)


def test_ep_of_a_dense_model() -> None:
    rule = "divides experts, and no layer of the model has any: leave it out"
    assert refusal(Layout(fsdp=8, ep=8)) == ("ep", 8, rule)
    assert refusal(Layout(fsdp=8, ep=7)) == ("ep", 7, rule)


def test_ranks_that_outnumber_experts_divide_the_second_dimension_evenly() -> None:
    """24 ranks hold 16 experts, 8 times 2 for 3 ranks; 3 divides the 2 x 24 rows of gate and up, and no width of 64."""
    rule = "leaves 3 ranks of fsdp for 2 experts, so fully_shard divides hidden_size (64) by 3, and it takes no uneven"
    assert refusal(Layout(fsdp=24, ep=8), MIXTURE)[2].startswith(rule)
    assert resolved(Layout(fsdp=32, ep=8), MIXTURE).expert_fsdp == 4
    assert resolved(Layout(fsdp=24, ep=1), MIXTURE).expert_fsdp == 24, "whole experts, padded"
    clamped = read_spec("gpt_oss_20b")  # 32 experts of 2880 x 2880
    assert resolved(Layout(fsdp=72, ep=8), clamped, sequence_length=64).expert_fsdp == 9
    assert refusal(Layout(fsdp=56, ep=8), clamped, sequence_length=64)[2].startswith("leaves 7 ranks of fsdp for 4 exp")


def test_no_rank_receives_more_than_all_rows() -> None:
    rule = "must be at most 5.33333: a token chooses 3 experts, and a rank has 2"
    assert refusal(Layout(fsdp=8, ep=8, expert_imbalance=5.4), MIXTURE) == ("expert_imbalance", 5.4, rule)
    assert resolved(Layout(fsdp=8, ep=8, expert_imbalance=5.3), MIXTURE).expert_imbalance == 5.3
    assert resolved(Layout(fsdp=2, ep=2, expert_imbalance=2), MIXTURE).expert_imbalance == 2


# --- Types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"fsdp": 2, "zero": 3.0}, {"cp": True}, {"pp": 1.0}])
def test_a_value_of_another_type_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        Layout(**fields)
