"""Gradient clipping on ranks by formula: by hand, and equal to what is measured."""

from typing import Any

import pytest
from msgspec import structs

from counting.formulas.layouts import pipeline_by_formula, rank_cost, ranks_by_formula
from counting.formulas.layouts import profile as formula
from counting.formulas.layouts.clipping import Counted, clipping_by_formula
from counting.measurements.ranks import measure_pipeline, measure_ranks
from counting.ranks.profile import RankStretch, Traffic
from counting.ranks.result import rank_classes
from counting.ranks.shallow import shallow
from counting.reconcile import DisagreementError, reconcile
from tests.counting.formulas.layouts.cases import DEEPSEEK, LLAMA, layout_of, setup_of, traffic_of
from tests.random_specs import widened
from tests.shrunken import FAMILIES
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout
from torch_models.spec import LayerRun, ModelSpec

LLAMA_TENSORS = 3 + 32 * 9  # embedding, head, final norm; q, k, v, o, gate, up, down and two norms


def of(spec: ModelSpec, layout: Layout, **fields: Any) -> RankStretch:
    found = ranks_by_formula(spec, setup_of(spec, sequence_length=64, clip_gradients=True, **fields), layout)
    assert found.gradient_clipping is not None
    return found.gradient_clipping


def sent(**sizes: int) -> dict[str, Traffic]:
    return {f"optimizer all_reduce {axis}": Traffic(calls=1, bytes_in=n, bytes_out=n) for axis, n in sizes.items()}


def test_llama_on_ranks_of_fsdp() -> None:
    """291 norms of 4 bytes, their stack, its squares, the sums of these over the ranks, and the roots: 5 x 1,164."""
    found = of(LLAMA, layout_of(fsdp=8))
    assert found.memory.peak == 5 * 4 * LLAMA_TENSORS == 5820
    assert found.traffic == sent(fsdp=1164)


@pytest.mark.parametrize("axes", [{"dp": 4, "fsdp": 8}, {"fsdp": 2, "cp": 4}, {"fsdp": 8, "zero": 1}])
def test_replicas_and_stages_of_zero_change_nothing(axes: dict[str, int]) -> None:
    assert of(LLAMA, layout_of(**axes)) == of(LLAMA, layout_of(fsdp=8))


def test_replicas_alone_send_nothing() -> None:
    """All have all gradients: norms, their stack, and the norm of it."""
    found = of(LLAMA, layout_of(dp=8))
    assert found.memory.peak == 2 * 4 * LLAMA_TENSORS + 4
    assert found.traffic == {}


def test_llama_on_ranks_of_fsdp_and_tp() -> None:
    """The roots of the first sums are there while the second ones are made: 6 x 1,164."""
    found = of(LLAMA, layout_of(fsdp=8, tp=8))
    assert found.memory.peak == 6 * 4 * LLAMA_TENSORS == 6984
    assert found.traffic == sent(fsdp=1164, tp=1164)


@pytest.mark.parametrize(("precision", "width"), [("mixed", 2), ("bf16", 2), ("mixed-fp32-gradients", 4), ("fp32", 4)])
def test_norms_are_as_wide_as_gradients(precision: str, width: int) -> None:
    """With tp alone as on one device: in 16 bits, unless they are added to buffers in fp32."""
    assert of(LLAMA, layout_of(tp=8), precision=precision).traffic == sent(tp=width * LLAMA_TENSORS)


def test_experts_have_a_norm_of_their_own() -> None:
    """DeepSeek-V3: two stacks of experts in each of 58 layers, over 32 ranks with the same ones, and 64 of ep.

    Its other tensors: embedding, head, final norm; in a layer 5 projections of attention, 2 norms of latents and 2 of
    the stream; in 3 layers gate, up and down, in 58 those of the shared expert, and a router. When their norms are
    taken, the one of the experts is there.
    """
    others = 3 + 61 * (5 + 2 + 2) + 3 * 3 + 58 * 4
    found = of(DEEPSEEK, layout_of(fsdp=2048, ep=64))
    assert found.traffic == sent(expert_fsdp=4 * 2 * 58, ep=4 * 2 * 58, fsdp=4 * others)
    assert found.memory.peak == 5 * 4 * others + 4


def test_one_number_goes_round_the_stages() -> None:
    """Of the norm of a stage with 9 tensors: 9 norms, their stack, and the norm of it, in 16 bits."""
    found = clipping_by_formula(Counted(experts=0, others=9), 2, layout_of(pp=4))
    assert found.traffic == sent(pp=2)
    assert found.memory.peak == 2 * (9 + 9 + 1)


def test_of_a_single_tensor_the_factor_needs_most() -> None:
    """Total norm, the same and 1e-6, its inverse, and that times the norm that is allowed."""
    assert clipping_by_formula(Counted(experts=0, others=1), 4, layout_of(pp=2)).memory.peak == 4 * 4


# --- Equal to what is measured ---------------------------------------------------------------------------------------

CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("gemma2", {"fsdp": 3, "zero": 2}, {}),
    ("llama", {"dp": 2}, {}),
    ("gpt_oss", {"tp": 2}, {}),
    ("olmo2", {"tp": 2}, {"precision": "mixed-fp32-gradients"}),
    ("deepseek_v3", {"dp": 2, "fsdp": 3, "tp": 2}, {}),
    ("llama", {"dp": 2, "tp": 2, "sequence_parallel": False}, {}),
    ("mixtral", {"fsdp": 4, "ep": 2}, {}),
    ("qwen3_moe", {"dp": 2, "fsdp": 2, "ep": 4}, {}),
    ("mixtral", {"fsdp": 2, "ep": 2, "cp": 2}, {"precision": "bf16"}),
]


def shrunken(family: str) -> ModelSpec:
    """A shrunken model of this family, whose sizes two ranks of tp divide."""
    spec = spec_from_fields(FAMILIES[family], "shrunken")
    runs = tuple(LayerRun(layer=widened(run.layer, 2), count=run.count) for run in spec.layer_runs)
    return structs.replace(spec, layer_runs=runs, mtp_layers=tuple(widened(layer, 2) for layer in spec.mtp_layers))


@pytest.mark.parametrize(("family", "axes", "fields"), CASES)
def test_equal_to_what_is_measured(family: str, axes: dict[str, Any], fields: dict[str, Any]) -> None:
    spec, layout = shrunken(family), layout_of(**axes)
    setup = setup_of(spec, sequence_length=32, clip_gradients=True, **fields)
    profile = ranks_by_formula(spec, setup, layout)
    measured = measure_ranks(spec, setup, layout)
    reconcile(family, {"measured": measured, "formula": profile})
    assert measured.gradient_clipping is not None
    cost = rank_cost(spec, setup, layout)
    assert cost.traffic == traffic_of(spec, setup, profile)
    assert cost.peak_bytes == rank_classes(shallow(spec), setup, profile, "formula")[0].memory.peak_bytes


@pytest.mark.parametrize(
    ("family", "axes", "fields"),
    [
        ("llama", {"pp": 2, "tp": 2, "dp": 2}, {}),
        ("deepseek_v3", {"pp": 2}, {"mtp": True}),
        ("deepseek_v3", {"pp": 2, "fsdp": 2, "ep": 2, "schedule": "dualpipev"}, {"mtp": True}),
    ],
)
def test_pipelines_equal_what_is_measured(family: str, axes: dict[str, Any], fields: dict[str, Any]) -> None:
    spec, layout = shrunken(family), layout_of(**axes)
    setup = setup_of(spec, sequence_length=32, micro_batches=4, clip_gradients=True, **fields)
    pairs = zip(measure_pipeline(spec, setup, layout), pipeline_by_formula(spec, setup, layout), strict=True)
    for measured, by_formula in pairs:
        assert measured.gradient_clipping == by_formula.gradient_clipping is not None


def test_a_tensor_that_the_formula_forgets_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, layout = shrunken("llama"), layout_of(fsdp=2)
    setup = setup_of(spec, sequence_length=8, clip_gradients=True)
    plain = formula.counted_tensors
    monkeypatch.setattr(formula, "counted_tensors", lambda groups: plain(groups)._replace(others=len(groups)))
    with pytest.raises(DisagreementError, match="gradient_clipping"):
        reconcile("x", {"m": measure_ranks(spec, setup, layout), "f": ranks_by_formula(spec, setup, layout)})


def test_without_clipping_there_is_no_phase() -> None:
    setup = setup_of(LLAMA, sequence_length=64)
    assert ranks_by_formula(LLAMA, setup, layout_of(fsdp=8)).gradient_clipping is None
