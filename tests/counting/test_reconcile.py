"""Every formula is broken once, and the run turns red naming what broke."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from counting import analytic, analytic_memory, analytic_memory_attention
from counting.analysis import analyze
from counting.counts import AttentionCore, Counts, LayerMemory, ModelCounts
from counting.derived import derive
from counting.lifetimes import Lifetimes
from counting.reconcile import Check, DisagreementError, reconcile
from tests.shrunken import DEEPSEEK_V3, GPT_OSS, LLAMA
from torch_models import spec as specs
from torch_models.config import spec_from_fields

DEEPSEEK_SPEC = spec_from_fields(DEEPSEEK_V3, "shrunken")
LLAMA_SPEC = spec_from_fields(LLAMA, "shrunken")

GPT_OSS_SPEC = spec_from_fields(GPT_OSS, "shrunken")
SPECS_WITH = {specs.GroupedQueryAttentionSpec: LLAMA_SPEC, specs.ClampedMLPSpec: GPT_OSS_SPEC}

FORMULAS = [
    (formula, spec_type)
    for formula in (analytic.parameters, analytic.forward_flops, analytic.attention_core)
    for spec_type in formula.registry
    if spec_type not in (object, specs.Spec) and (formula, spec_type) != (analytic.forward_flops, specs.ModelSpec)
]


def off_by_one(formula: Callable[..., Any]) -> Callable[..., Any]:
    def broken(*arguments: Any) -> Any:
        right = formula(*arguments)
        if isinstance(right, AttentionCore):
            return right + AttentionCore(causal=1)
        return right + Counts(mlp=1) if isinstance(right, Counts) else right + 1

    return broken


@pytest.mark.parametrize(
    ("formula", "spec_type"), FORMULAS, ids=[f"{formula.__name__}-{kind.__name__}" for formula, kind in FORMULAS]
)
def test_a_broken_formula_is_found(formula: Any, spec_type: type, monkeypatch: pytest.MonkeyPatch) -> None:
    right = formula.dispatch(spec_type)
    spec = SPECS_WITH.get(spec_type, DEEPSEEK_SPEC)
    formula.register(spec_type, off_by_one(right))
    try:
        with pytest.raises(DisagreementError, match=r"measured [\d,]+ differs from formula [\d,]+, by "):
            analyze(spec, sequence_length=32)
    finally:
        formula.register(spec_type, right)
    assert analyze(spec, sequence_length=32).agreement.ok


@pytest.mark.parametrize(
    "name",
    ["head_flops", "inactive_parameters", "router_correction_bias", "mtp_parameters", "mtp_forward_flops"],
)
def test_a_broken_plain_formula_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analytic, name, off_by_one(getattr(analytic, name)))
    with pytest.raises(DisagreementError):
        analyze(DEEPSEEK_SPEC, sequence_length=32)


MEMORY_BLOCKS = [
    ("_rotate", LLAMA_SPEC, "eager"),
    ("norm_memory", LLAMA_SPEC, "fused"),
    ("norm_memory", LLAMA_SPEC, "eager"),
    ("_grouped_projections", LLAMA_SPEC, "fused"),
    ("_latent_projections", DEEPSEEK_SPEC, "fused"),
    ("_fused_core", LLAMA_SPEC, "fused"),
    ("_eager_core", LLAMA_SPEC, "eager"),
    ("_gated_mlp", LLAMA_SPEC, "fused"),
    ("_router", DEEPSEEK_SPEC, "fused"),
    ("_routed_experts", DEEPSEEK_SPEC, "fused"),
    ("_gated_experts", DEEPSEEK_SPEC, "fused"),
    ("_clamped_experts", GPT_OSS_SPEC, "fused"),
    ("_hidden_positions", LLAMA_SPEC, "eager"),
]


@pytest.mark.parametrize(("block", "spec", "kernels"), MEMORY_BLOCKS, ids=[f"{b}-{k}" for b, _, k in MEMORY_BLOCKS])
def test_a_forgotten_tensor_is_found(block: str, spec: Any, kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte more that a block keeps, and the peak is wrong."""
    module = analytic_memory_attention if hasattr(analytic_memory_attention, block) else analytic_memory
    right = getattr(module, block)
    calls = 0

    def forgetful(memory: Lifetimes, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        memory.keep(**{f"forgotten_{calls}": 1})
        return right(memory, *arguments, **options)

    monkeypatch.setattr(module, block, forgetful)
    if block == "norm_memory":  # which the layer calls too
        monkeypatch.setattr(analytic_memory, block, forgetful)
    with pytest.raises(DisagreementError, match="peak_memory"):
        analyze(spec, sequence_length=512, kernels=kernels)


def test_a_disagreement_names_component_both_numbers_and_difference() -> None:
    right = derive(LLAMA_SPEC, 32, "fused")
    layer = right.layers[0]
    wrong_layer = msgspec.structs.replace(layer, parameters=layer.parameters + Counts(attention=7))
    wrong = msgspec.structs.replace(right, layers=(wrong_layer,))
    with pytest.raises(DisagreementError) as caught:
        reconcile("shrunken", right, wrong)
    measured = layer.parameters.attention
    assert str(caught.value).splitlines()[0] == (
        "shrunken: parameters, dense layer, attention: "
        f"measured {measured:,} differs from formula {measured + 7:,}, by -7"
    )


def integers_of(value: Any, path: str = "") -> list[tuple[str, int]]:
    """Every integer in a nest of structs, with where it stands."""
    if isinstance(value, int):
        return [(path, value)]
    if isinstance(value, tuple):
        return [found for index, item in enumerate(value) for found in integers_of(item, f"{path}.{index}")]
    if isinstance(value, msgspec.Struct):
        fields = value.__struct_fields__
        return [found for field in fields for found in integers_of(getattr(value, field), f"{path}.{field}")]
    return []


def with_integer(value: Any, path: list[str], new: int) -> Any:
    if not path:
        return new
    head, *rest = path
    if isinstance(value, tuple):
        index = int(head)
        return (*value[:index], with_integer(value[index], rest, new), *value[index + 1 :])
    return msgspec.structs.replace(value, **{head: with_integer(getattr(value, head), rest, new)})


RIGHT = derive(DEEPSEEK_SPEC, 32, "fused")
PLACES = [(path, value) for path, value in integers_of(RIGHT) if not path.endswith(".count")]


def test_no_number_escapes_reconciliation() -> None:
    assert len(PLACES) > 90
    assert {type(RIGHT), type(RIGHT.layers[0].memory)} == {ModelCounts, LayerMemory}
    for path, value in PLACES:
        wrong = with_integer(RIGHT, path.strip(".").split("."), value + 1)
        with pytest.raises(DisagreementError):
            reconcile(path, wrong, RIGHT)


def test_check_reads_well() -> None:
    check = Check(quantity="parameters", scope="model", component="total", measured=1234, analytic=1234)
    assert check.ok
    assert str(check) == "parameters, model, total: measured 1,234 = formula 1,234"
