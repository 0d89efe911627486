"""Every formula is broken once, and the run turns red naming what broke."""

import inspect
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from counting.analysis import analyze
from counting.counts import AttentionCore, Counts, LayerMemory, ModelCounts
from counting.formulas import flops as analytic
from counting.formulas.memory import attention as analytic_memory_attention
from counting.formulas.memory import blocks as analytic_memory_blocks
from counting.formulas.memory import experts as analytic_memory_experts
from counting.formulas.memory import layer as analytic_memory
from counting.formulas.memory import operations as tape_ops
from counting.formulas.memory import step as analytic_step_memory
from counting.formulas.memory.step import derive_step
from counting.formulas.memory.tape import Array, Tape
from counting.formulas.model import derive
from counting.recipes import find_optimizer, find_precision
from counting.reconcile import Check, DisagreementError, reconcile
from counting.step_profile import StepOptions
from tests.shrunken import DEEPSEEK_V3, FAMILIES, GPT_OSS, LLAMA
from torch_models import spec as specs
from torch_models.fields.config import spec_from_fields

DEEPSEEK_SPEC = spec_from_fields(DEEPSEEK_V3, "shrunken")
LLAMA_SPEC = spec_from_fields(LLAMA, "shrunken")

GPT_OSS_SPEC = spec_from_fields(GPT_OSS, "shrunken")
SPECS_WITH = {specs.GroupedQueryAttentionSpec: LLAMA_SPEC, specs.ClampedMLPSpec: GPT_OSS_SPEC}

FORMULAS = [
    (formula, spec_type)
    for formula in (analytic.parameters, analytic.linear_weights, analytic.forward_flops, analytic.attention_core)
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
    (analytic_memory_attention, "_rotate", LLAMA_SPEC, "eager"),
    (analytic_memory_attention, "norm", DEEPSEEK_SPEC, "fused"),
    (analytic_memory, "norm", LLAMA_SPEC, "fused"),
    (analytic_memory, "norm", LLAMA_SPEC, "eager"),
    (analytic_memory_attention, "_grouped_projections", LLAMA_SPEC, "fused"),
    (analytic_memory_attention, "_latent_projections", DEEPSEEK_SPEC, "fused"),
    (analytic_memory_attention, "_fused_core", LLAMA_SPEC, "fused"),
    (analytic_memory_attention, "_eager_core", LLAMA_SPEC, "eager"),
    (analytic_memory, "gated_mlp", LLAMA_SPEC, "fused"),
    (analytic_memory_experts, "_router", DEEPSEEK_SPEC, "fused"),
    (analytic_memory_experts, "_routed_experts", DEEPSEEK_SPEC, "fused"),
    (analytic_memory_experts, "_gated_experts", DEEPSEEK_SPEC, "fused"),
    (analytic_memory_experts, "_clamped_experts", GPT_OSS_SPEC, "fused"),
    (analytic_memory_attention, "_hidden_positions", LLAMA_SPEC, "eager"),
]


@pytest.mark.parametrize(
    ("module", "block", "spec", "kernels"), MEMORY_BLOCKS, ids=[f"{b}-{k}" for _, b, _, k in MEMORY_BLOCKS]
)
def test_a_forgotten_tensor_is_found(
    module: Any, block: str, spec: Any, kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte more that a block keeps, and the peak is wrong."""
    right = getattr(module, block)
    forgotten: list[Array] = []

    def forgetful(tape: Tape, *arguments: Any, **options: Any) -> Any:
        forgotten.append(tape.new(1, 1))
        return right(tape, *arguments, **options)

    monkeypatch.setattr(module, block, forgetful)
    with pytest.raises(DisagreementError, match="peak_memory"):
        analyze(spec, sequence_length=512, kernels=kernels)


OPERATIONS = [
    name
    for name, function in vars(tape_ops).items()
    if inspect.isfunction(function) and function.__module__ == tape_ops.__name__ and name != "first"
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_gradient_of_another_size_is_found(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte more that an operation's backward makes, and a step's memory differs from the measured one."""
    leaks: list[Array] = []

    def leaking(tape: Tape, *arguments: Any, **options: Any) -> Any:
        before = tape.position
        out = right(tape, *arguments, **options)
        for made in tape._operations[before:]:
            derive = made.derive

            def derive_and_leak(gradients: Any, derive: Any = derive) -> Any:
                leaks.append(tape.new(1, 1))
                return derive(gradients)

            made.derive = derive_and_leak
        return out

    right = getattr(tape_ops, operation)
    cases = [
        (spec_from_fields(FAMILIES[family], "shrunken"), kernels)
        for family in ("deepseek_v3", "gpt_oss", "gemma2")
        for kernels in ("fused", "eager")
    ]
    runs = [(spec, step_options(kernels)) for spec, kernels in cases]
    expected = [derive_step(*run) for run in runs]
    for module in (tape_ops, analytic_memory_blocks, analytic_memory_attention, analytic_memory_experts):
        if hasattr(module, operation):
            monkeypatch.setattr(module, operation, leaking)
    for module in (analytic_memory, analytic_step_memory):
        if hasattr(module, operation):
            monkeypatch.setattr(module, operation, leaking)
    assert [derive_step(*run) for run in runs] != expected


def step_options(kernels: Any) -> StepOptions:
    return StepOptions(
        sequence_length=24,
        kernels=kernels,
        recompute="none",
        precision=find_precision("mixed"),
        optimizer=find_optimizer("adamw"),
        mtp=True,
        loss_chunk=7,
    )


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
