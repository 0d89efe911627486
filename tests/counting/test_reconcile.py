"""Witnesses held against each other: what is compared, what an error says, and that nothing escapes.

Every formula is broken once, and the analysis turns red naming what broke.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch
from torch.utils.flop_counter import flop_registry

from counting.analysis import analyze
from counting.counts import AttentionCore, Counts, LayerCounts, LayerMemory, ModelCounts, OutsideCounts, StepFlops
from counting.formulas import flops, held, model, parameters, states, tensors
from counting.formulas.held import attention as held_attention
from counting.reconcile import Check, DisagreementError, reconcile
from counting.setup import Setup
from tests.shrunken import DEEPSEEK_V3, DEEPSEEK_V32, GPT2, GPT_OSS, LLAMA
from tests.witnesses import agreed, derived, measured
from torch_models import spec as specs
from torch_models.fields.config import spec_from_fields

DEEPSEEK_SPEC = spec_from_fields(DEEPSEEK_V3, "shrunken")
LLAMA_SPEC = spec_from_fields(LLAMA, "shrunken")
SPARSE_SPEC = spec_from_fields(DEEPSEEK_V32, "shrunken")
GPT_OSS_SPEC = spec_from_fields(GPT_OSS, "shrunken")
TWO_PREDICTIONS = spec_from_fields(DEEPSEEK_V3 | {"num_nextn_predict_layers": 2}, "two")
SPECS_WITH = {
    specs.GroupedQueryAttentionSpec: LLAMA_SPEC,
    specs.MLPSpec: spec_from_fields(GPT2, "shrunken"),
    specs.ClampedMLPSpec: GPT_OSS_SPEC,
}
SHORT = Setup(sequence_length=32)

# --- What is compared ------------------------------------------------------------------------------------------


def of_layer(**fields: Any) -> ModelCounts:
    return ModelCounts(layers=(LayerCounts(kind="dense", count=2, **fields),))


def test_what_all_witnesses_say_is_one_check() -> None:
    counts = of_layer(linear_weights=6)
    merged, agreement = reconcile("m", {"one": counts, "two": counts, "three": counts})
    assert merged == counts
    assert agreement.witnesses == ("one", "two", "three")
    (check,) = agreement.checks
    assert (check.quantity, check.scope, check.component) == ("linear_weights", "dense layer", "total")
    assert check.values == {"one": 6, "two": 6, "three": 6}
    assert check.agree
    assert check.proven


def test_a_field_of_one_witness_is_listed_as_such() -> None:
    said = {"numel": of_layer(linear_weights=6), "trace": of_layer(attention_core_flops=AttentionCore(as_run=4))}
    merged, agreement = reconcile("m", said)
    assert merged == of_layer(linear_weights=6, attention_core_flops=AttentionCore(as_run=4))
    assert [check.values for check in agreement.checks] == [{"numel": 6}, {"trace": 4}]
    assert not any(check.proven for check in agreement.checks)


def test_counts_are_compared_by_component_and_in_all() -> None:
    counts = ModelCounts(
        layers=(),
        outside=OutsideCounts(parameters=Counts(norm=2, lm_head=3)),
        training_flops=StepFlops(backward=Counts(mlp=5)),
    )
    checks = reconcile("m", {"one": counts, "two": counts})[1].checks
    assert [(check.scope, check.quantity, check.component, check.values["one"]) for check in checks] == [
        ("outside the layers", "parameters", "norm", 2),
        ("outside the layers", "parameters", "lm_head", 3),
        ("outside the layers", "parameters", "total", 5),
        ("step, backward", "training_flops", "mlp", 5),
        ("step, backward", "training_flops", "total", 5),
    ]


def test_the_parts_of_a_memory_and_its_peak() -> None:
    counts = of_layer(peak_memory_bytes=LayerMemory(weights=1, boundary=2, saved=0, transients=4))
    checks = reconcile("m", {"one": counts, "two": counts})[1].checks
    assert [(check.quantity, check.component, check.values["two"]) for check in checks] == [
        ("peak_memory_bytes", "weights", 1),
        ("peak_memory_bytes", "boundary", 2),
        ("peak_memory_bytes", "transients", 4),
        ("peak_memory_bytes", "total", 7),
    ]


def test_witnesses_of_other_layers_are_no_witnesses() -> None:
    with pytest.raises(AssertionError, match="witnesses speak of different layers"):
        reconcile("m", {"one": of_layer(), "two": ModelCounts(layers=(LayerCounts(kind="moe", count=2),))})
    with pytest.raises(AssertionError, match="tables of unequal length"):
        reconcile("m", {"one": of_layer(), "two": ModelCounts(layers=())})


def test_a_disagreement_names_component_both_numbers_and_difference() -> None:
    right = derived(LLAMA_SPEC, step=False, sequence_length=32)
    layer = right.layers[0]
    assert layer.parameters is not None
    wrong_layer = msgspec.structs.replace(layer, parameters=layer.parameters + Counts(attention=7))
    wrong = msgspec.structs.replace(right, layers=(wrong_layer,))
    with pytest.raises(DisagreementError) as caught:
        reconcile("shrunken", {"numel": right, "formula": wrong})
    number = layer.parameters.attention
    assert str(caught.value).splitlines()[0] == (
        f"shrunken: parameters, dense layer, attention: numel {number:,} differs from formula {number + 7:,}, by -7"
    )


def test_check_reads_well() -> None:
    check = Check(quantity="parameters", scope="model", component="total", values={"numel": 1234, "formula": 1234})
    assert str(check) == "parameters, model, total: numel 1,234 = formula 1,234"


# --- No number escapes -----------------------------------------------------------------------------------------


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


RIGHT = derived(TWO_PREDICTIONS, sequence_length=32, recompute="full", loss_chunk=7)
PLACES = [(path, value) for path, value in integers_of(RIGHT) if not path.endswith(".count")]


def test_no_number_escapes_reconciliation() -> None:
    assert len(PLACES) > 200
    for path, value in PLACES:
        wrong = with_integer(RIGHT, path.strip(".").split("."), value + 1)
        with pytest.raises(DisagreementError):
            reconcile(path, {"wrong": wrong, "right": RIGHT})


def test_every_number_of_an_analysis_has_two_witnesses() -> None:
    """Nothing of a family with formulas is said by one alone, where torch runs the recipe."""
    for spec in (TWO_PREDICTIONS, GPT_OSS_SPEC):
        checks = analyze(spec, SHORT).agreement.checks
        assert [str(check) for check in checks if not check.proven] == []


def test_states_by_recipe_have_no_second_witness() -> None:
    """Formats that torch does not run: both sides would ask the same function, so it is asked once."""
    checks = analyze(DEEPSEEK_SPEC, Setup(sequence_length=32, precision="fp8")).agreement.checks
    alone = [check for check in checks if not check.proven]
    assert {witness for check in alone for witness in check.values} == {"recipe"}
    assert {check.component.partition(".")[0] for check in alone} == {"states", "outside_states"}


# --- Broken once -----------------------------------------------------------------------------------------------

FORMULAS = [
    (formula, spec_type)
    for formula in (parameters.parameters, parameters.linear_weights, flops.forward_flops, flops.attention_core)
    for spec_type in formula.registry
    if spec_type not in (object, specs.Spec, specs.ModelSpec)  # a whole model is the sum of what is broken here
]


def off_by_one(formula: Callable[..., Any]) -> Callable[..., Any]:
    def broken(*arguments: Any, **options: Any) -> Any:
        right = formula(*arguments, **options)
        if isinstance(right, AttentionCore):
            return right + AttentionCore(causal=1)
        if isinstance(right, StepFlops):
            return right + StepFlops(recomputed=Counts(attention=1))
        return right + Counts(mlp=1) if isinstance(right, Counts) else right + 1

    return broken


@pytest.mark.parametrize(
    ("formula", "spec_type"), FORMULAS, ids=[f"{formula.__name__}-{kind.__name__}" for formula, kind in FORMULAS]
)
def test_a_broken_formula_is_found(formula: Any, spec_type: type) -> None:
    right = formula.dispatch(spec_type)
    spec = SPECS_WITH.get(spec_type, DEEPSEEK_SPEC)
    formula.register(spec_type, off_by_one(right))
    try:
        with pytest.raises(DisagreementError, match=r"[\d,]+ differs from formula [\d,]+, by "):
            analyze(spec, SHORT, step=False)
    finally:
        formula.register(spec_type, right)
    assert analyze(spec, SHORT, step=False).agreement


@pytest.mark.parametrize(
    ("room", "name"),
    [
        (flops, "head_flops"),
        (parameters, "inactive_parameters"),
        (parameters, "router_correction_bias"),
        (parameters, "mtp_parameters"),
        (parameters, "outside_parameters"),
        (flops, "mtp_forward_flops"),
        (held, "weight_bytes"),
        (held, "boundary_bytes"),
        (held, "layer_held"),
        (held, "embedding_held"),
        (held, "loss_held"),
        (states, "input_bytes"),
        (states, "buffer_bytes"),
        (states, "layer_moments"),
        (states, "outside_moments"),
        (states, "mtp_moments"),
        (flops, "training_flops"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_plain_formula_is_found(room: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = off_by_one(getattr(room, name))
    for user in (room, model):
        if hasattr(user, name):
            monkeypatch.setattr(user, name, broken)
    with pytest.raises(DisagreementError):
        analyze(DEEPSEEK_SPEC, SHORT)


SHAPES = [kind for kind in tensors.tensors.registry if kind not in (object, specs.Spec)]


@pytest.mark.parametrize("spec_type", SHAPES, ids=lambda kind: kind.__name__)
def test_a_forgotten_tensor_of_an_optimiser_is_found(spec_type: type) -> None:
    formula: Any = tensors.tensors
    right = formula.dispatch(spec_type)
    formula.register(spec_type, lambda spec: right(spec)[1:])
    try:
        with pytest.raises(DisagreementError, match=r"moment_bytes, (dense|moe|dense_no_rope) layer"):
            analyze(SPECS_WITH.get(spec_type, DEEPSEEK_SPEC), SHORT, step=False)
    finally:
        formula.register(spec_type, right)


@pytest.mark.parametrize(
    ("room", "name", "component"),
    [
        (flops, "index_scores_flops", "indexer"),
        (flops, "chosen_keys", "attention"),
        (parameters, "indexer_matrices", "indexer"),
        (model, "frozen_parameters", "frozen_parameters"),
        (states, "frozen_parameters", "states.gradients"),
        (held_attention, "chosen_held", "held"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_formula_of_an_indexer_is_found(
    room: Any, name: str, component: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(room, name)
    more: Any = [(1, 1)] if name == "indexer_matrices" else 1
    monkeypatch.setattr(room, name, lambda *given: right(*given) + more)
    with pytest.raises(DisagreementError, match=component):
        analyze(SPARSE_SPEC, SHORT)


@pytest.mark.parametrize("part", StepFlops.__struct_fields__)
@pytest.mark.parametrize("name", ["layer_step_flops", "mtp_layer_step_flops"])
def test_a_broken_step_formula_is_found(name: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(flops, name)
    monkeypatch.setattr(
        flops, name, lambda *given, **how: right(*given, **how) + StepFlops(**{part: Counts(attention=1)})
    )
    match = rf"two: training_flops, step, {part}, attention: dispatch [\d,]+ differs"
    with pytest.raises(DisagreementError, match=match):
        agreed(TWO_PREDICTIONS, recompute="selective")


@pytest.mark.parametrize("spec", [TWO_PREDICTIONS, GPT_OSS_SPEC], ids=["two", "gpt_oss"])
def test_a_broken_backward_of_attention_is_found(spec: specs.ModelSpec) -> None:
    formula: Any = flops.fused_core_backward
    kind = type(spec.layers[0].attention)
    right = formula.dispatch(kind)
    formula.register(kind, lambda *given: right(*given) + 1)
    try:
        with pytest.raises(DisagreementError, match="training_flops, step, backward, attention"):
            analyze(spec, SHORT)
    finally:
        formula.register(kind, right)


@pytest.mark.parametrize(
    ("op", "part", "component"),
    [
        (torch.ops.aten._grouped_mm, "backward", "routed_experts"),
        (torch.ops.model_training_cost.flash_attention, "recomputed", "attention"),
        (torch.ops.model_training_cost.flash_attention_backward, "backward", "attention"),
    ],
    ids=str,
)
def test_a_broken_formula_of_an_op_is_found(
    op: Any, part: str, component: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gpt-oss has layers with a window, whose attention is an op of ours, and grouped products."""
    right = flop_registry[op]
    monkeypatch.setitem(flop_registry, op, lambda *given, **options: right(*given, **options) + 1)
    with pytest.raises(DisagreementError, match=f"training_flops, step, {part}, {component}"):
        agreed(GPT_OSS_SPEC, recompute="selective")


def test_a_measurement_that_differs_is_found() -> None:
    """The other way round: formulas are right, and what was measured is not."""
    right, shown = derived(LLAMA_SPEC), measured(LLAMA_SPEC)
    assert shown.training_flops is not None
    wrong = msgspec.structs.replace(shown, training_flops=shown.training_flops + StepFlops(backward=Counts(mlp=-1)))
    with pytest.raises(DisagreementError, match=r"training_flops, step, backward, mlp: .*, by -1"):
        reconcile("m", {"dispatch": wrong, "formula": right})
