"""What there is no formula for by Megatron-LM's rules is refused, with what there is one for."""

from typing import Any

import pytest

from counting.layout import resolve_layout
from counting.setup import Setup, resolve
from torch_models import ArgumentError, read_spec
from torch_models.layout import Layout
from torch_models.spec import ModelSpec

LLAMA_3 = read_spec("llama_3_8b")


def resolved(spec: ModelSpec = LLAMA_3, *, micro_batches: int = 8, layout: Any = None, **setup: Any) -> Layout:
    layout = Layout(framework="megatron", **(layout or {"tp": 2}))
    found = resolve(Setup(sequence_length=64, micro_batches=micro_batches, **setup), spec)
    return resolve_layout(layout, spec, found)


def refusal(spec: ModelSpec = LLAMA_3, **arguments: Any) -> tuple[str, object, str]:
    with pytest.raises(ArgumentError) as caught:
        resolved(spec, **arguments)
    return caught.value.field, caught.value.value, caught.value.rule


def test_its_optimiser_alone_is_divided() -> None:
    assert resolved(layout={"fsdp": 8}).zero == 1
    assert resolved(layout={"tp": 2}).zero == 1
    assert resolved(layout={"fsdp": 8, "zero": 1}).zero == 1
    rule = "must be 1 by Megatron-LM's rules, whose optimiser alone is divided: leave it out"
    assert refusal(layout={"fsdp": 8, "zero": 3}) == ("zero", 3, rule)


@pytest.mark.parametrize(
    ("field", "value", "known"),
    [
        ("precision", "bf16", "mixed or mixed-fp32-gradients"),
        ("precision", "fp8", "mixed or mixed-fp32-gradients"),
        ("optimizer", "sgd", "adamw or adamw-foreach"),
        ("optimizer", "muon", "adamw or adamw-foreach"),
        ("recompute", "per_op", "none or selective or full"),
        ("recompute", 2, "none or selective or full"),
        ("kernels", "eager", "fused"),
    ],
)
def test_settings_without_a_formula(field: str, value: Any, known: str) -> None:
    rule = f"has no formula by Megatron-LM's rules: give {known}"
    assert refusal(**{field: value}) == (field, value, rule)


def test_clipping_holds_nothing() -> None:
    rule = "changes nothing that Megatron-LM holds when backward begins, which is all that is counted: leave it out"
    assert refusal(clip_gradients=True) == ("clip_gradients", True, rule)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("precision", ["mixed", "mixed-fp32-gradients"])
def test_settings_with_one(recompute: Any, precision: str) -> None:
    assert resolved(recompute=recompute, precision=precision).tp == 2


@pytest.mark.parametrize("config", ["mixtral_8x7b", "deepseek_v3", "gpt_oss_20b", "qwen3_30b_a3b"])
def test_experts_have_none(config: str) -> None:
    field, value, rule = refusal(read_spec(config), layout={"fsdp": 2})
    assert (field, value) == ("framework", "megatron")
    assert rule == "has no formula for experts, whose rows Megatron-LM keeps in ways of its own: give torch"


@pytest.mark.parametrize("schedule", ["gpipe", "zb", "zbv", "dualpipev"])
def test_it_has_two_schedules(schedule: str) -> None:
    rule = "is not one of Megatron-LM's schedules: give 1f1b or interleaved"
    assert refusal(layout={"pp": 2, "schedule": schedule}) == ("schedule", schedule, rule)


def test_it_gathers_no_groups() -> None:
    rule = "is of torch's fully_shard, which Megatron-LM does not use: leave it out"
    assert refusal(layout={"fsdp": 2, "grouping": "layers"}) == ("grouping", "layers", rule)


def test_rounds_of_its_interleaved_schedule() -> None:
    rule = "Megatron-LM's interleaved schedule needs a multiple of pp (4): give 8 or 12"
    layout = {"pp": 4, "schedule": "interleaved"}
    assert refusal(layout=layout, micro_batches=10) == ("micro_batches", 10, rule)
    assert refusal(layout=layout, micro_batches=3)[2].endswith("give 4")
    assert resolved(layout=layout, micro_batches=12).stages == 8
    assert resolved(layout={"pp": 4}, micro_batches=3).pp == 4, "its 1F1B takes fewer micro-batches than stages"


def test_a_head_that_is_the_embedding_is_no_reason() -> None:
    assert resolved(read_spec("llama_3_2_1b"), layout={"pp": 2}).stage_layers == (8, 8)
