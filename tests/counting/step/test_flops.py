"""FLOPs of one training step: by hand, what recomputing adds, and the result."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from counting.analysis import Analysis, analyze
from counting.cost.conventions import main_attention_core
from counting.counts import AttentionCore, Counts, ModelCounts, StepFlops
from counting.formulas import flops
from counting.measurements.meta_device import measuring
from counting.report.model.step_flops import step_flops_table
from counting.setup import Setup
from tests.shrunken import DEEPSEEK_V3, FAMILIES, GEMMA2, GPT_OSS, LLAMA, LLAMA4
from tests.witnesses import measured
from torch_models import build_training_model, set_recompute
from torch_models.fields.config import read_spec, spec_from_fields
from torch_models.spec import Kernels, ModelSpec, Recompute

KERNELS: list[Kernels] = ["fused", "eager"]
RECOMPUTES: list[Recompute] = ["none", "selective", "per_op", "full"]

TWO_PREDICTIONS = spec_from_fields(DEEPSEEK_V3 | {"num_nextn_predict_layers": 2}, "two")


def step_of(counts: ModelCounts) -> StepFlops:
    assert counts.training_flops is not None
    return counts.training_flops


# --- By hand ---------------------------------------------------------------------------------------------------

# Llama-7B's layer at 2,048 tokens, 2 FLOPs each: 4 projections of 4096 x 4096, 3 of 4096 x 11008, and of attention
# 2 products of 2048 x 2048 x 128 in 32 heads.
PROJECTIONS = 2 * 2048 * (4 * 4096 * 4096 + 3 * 4096 * 11008)  # 828,928,688,128
CORE = 2 * 2 * 2048 * 2048 * 128 * 32  # 68,719,476,736


def test_llama_7b_layer_by_hand() -> None:
    layer = read_spec("llama_7b_config.json").layers[0]
    fused, eager = (flops.layer_step_flops(layer, 2048, 1, kernels, "selective") for kernels in KERNELS)
    assert fused.forward.total == eager.forward.total == PROJECTIONS + CORE == 897_648_164_864
    # Two products for each of the forward pass, and five for attention's two where no scores are kept.
    assert fused.backward.total == 2 * PROJECTIONS + 5 * CORE // 2 == 1_829_656_068_096
    assert eager.backward.total == 2 * PROJECTIONS + 2 * CORE == 1_795_296_329_728
    assert fused.recomputed == Counts(attention=CORE)


def test_llama_7b_by_hand() -> None:
    """32 layers, and a head of 4096 x 32000 per token."""
    analysis = analyze("llama_7b_config.json", Setup(sequence_length=2048, recompute="full"))
    head = 2 * 2048 * 4096 * 32_000
    step = analysis.training
    assert step is not None
    assert step.forward_flops == 32 * 897_648_164_864 + head
    assert step.backward_flops == 32 * 1_829_656_068_096 + 2 * head
    assert step.recomputed_flops == 32 * 897_648_164_864
    assert step.flash_backward_extra_flops == 32 * CORE // 2
    assert step.model_backward_flops == 2 * step.forward_flops
    assert step.hardware_flops_by_component["lm_head"] == 3 * head
    assert sum(step.hardware_flops_by_component.values()) == step.hardware_flops
    assert step.model_flops == 3 * step.forward_flops == analysis.model_flops
    assert step.model_flops - step.model_flops_causal == 3 * 32 * CORE // 2
    assert step.hardware_flops == step.forward_flops + step.backward_flops + step.recomputed_flops


# 4 heads, 10 positions, keys of 24 channels (16 + 8), values of 20: scores and the gradients of queries and keys, then
# the gradients of probabilities and of values, 2 * 4 * 100 * (3 * 24 + 2 * 20); the scores are made once more.
def test_fused_backward_of_unequal_heads_by_hand() -> None:
    layer = spec_from_fields(DEEPSEEK_V3, "s").layers[0]
    step = flops.layer_step_flops(layer, 10, 1, "fused", "none")
    assert flops.fused_core_backward(layer.attention, 10, 1) == 2 * 4 * 100 * (3 * 24 + 2 * 20) == 89_600
    assert step.extra_products == 2 * 4 * 100 * 24


# 8 heads of 8 channels, 40 positions, a window of 12: five products over 40 * 12 pairs.
def test_fused_backward_visits_the_band() -> None:
    layer = spec_from_fields(FAMILIES["mistral"], "s").layers[0]
    assert flops.fused_core_backward(layer.attention, 40, 1) == 2 * 5 * 8 * 8 * 40 * 12
    assert flops.fused_core_backward(layer.attention, 10, 1) == 2 * 5 * 8 * 8 * 10 * 10


@pytest.mark.parametrize("way", [("none", None), ("selective", None), ("full", 1)], ids=str)
@pytest.mark.parametrize(
    ("spec", "kernels"),
    [(TWO_PREDICTIONS, "fused"), (TWO_PREDICTIONS, "eager"), (spec_from_fields(GEMMA2, "gemma2"), "fused")],
    ids=["two-fused", "two-eager", "gemma2-fused"],
)
def test_the_whole_model_counted_without_asking_for_whom(
    spec: ModelSpec, kernels: Kernels, way: tuple[Recompute, int | None]
) -> None:
    """Every layer built, and by torch's own counter, of which only the sum of all ops is taken."""
    how: Any = {"device": "meta", "dtype": torch.bfloat16, "kernels": kernels}
    model = build_training_model(spec, **how, loss_chunk=way[1])
    set_recompute(model, way[0])
    ids = torch.empty(1, 24, dtype=torch.long, device="meta")
    counter = FlopCounterMode(display=False)
    with measuring(), counter:
        model(ids, ids).backward()
    step = step_of(measured(spec, kernels=kernels, recompute=way[0], loss_chunk=way[1]))
    assert step.hardware == counter.get_total_flops()


@pytest.mark.parametrize("spec", [TWO_PREDICTIONS, spec_from_fields(GPT_OSS, "gpt_oss")], ids=lambda spec: spec.name)
def test_the_forward_pass_is_that_of_the_analysis(spec: ModelSpec) -> None:
    counts = measured(spec, recompute="full")
    step, forward, mtp_forward = step_of(counts), counts.whole_model().forward_flops, counts.mtp.forward_flops
    assert forward is not None
    assert mtp_forward is not None
    assert step.forward == forward + mtp_forward
    assert step.model == 3 * step.forward.total


# --- What recomputing adds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("fields", [LLAMA, DEEPSEEK_V3, GPT_OSS], ids=["llama", "deepseek_v3", "gpt_oss"])
def test_what_is_recomputed_is_the_forward_pass_of_that_part(fields: dict[str, Any], kernels: Kernels) -> None:
    spec = spec_from_fields(fields, "s")

    def run(recompute: Recompute, loss_chunk: int | None) -> ModelCounts:
        return measured(spec, kernels=kernels, mtp=False, recompute=recompute, loss_chunk=loss_chunk)

    counts = run("none", None)
    forward, core = counts.whole_model().forward_flops, counts.whole_model().attention_core_flops
    head = counts.outside.forward_flops
    assert forward is not None
    assert core is not None
    assert head is not None
    ways: list[tuple[Recompute, int | None]] = [("selective", None), ("full", None), ("none", 7), ("full", 7)]
    selective, full, chunked, both = (step_of(run(*way)) for way in ways)
    assert step_of(counts).recomputed == Counts()
    assert selective.recomputed == Counts(attention=core.as_run)
    assert full.recomputed == forward - head
    assert chunked.recomputed == head
    assert both.recomputed == forward
    assert step_of(run("full", 24)) == full
    for step in (selective, full, chunked, both):
        assert (step.forward, step.backward) == (step_of(counts).forward, step_of(counts).backward)


def test_eager_attention_has_no_extra_product() -> None:
    spec = spec_from_fields(LLAMA, "s")
    assert step_of(measured(spec, kernels="eager")).extra_products == 0
    counts = measured(spec, kernels="fused")
    core = counts.whole_model().attention_core_flops
    assert core is not None
    assert step_of(counts).extra_products == core.as_run // 2


def test_multi_token_prediction_adds_its_layers_projections_and_heads() -> None:
    without, counts = step_of(measured(TWO_PREDICTIONS, mtp=False)), measured(TWO_PREDICTIONS)
    added = step_of(counts).forward - without.forward
    assert added == counts.mtp.forward_flops
    assert added.lm_head == 2 * without.forward.lm_head
    assert added.mlp == 2 * 2 * 24 * 128 * 64  # of two projections, each from 128 to 64 channels


def test_attention_of_the_prediction_modules_by_hand() -> None:
    core = measured(TWO_PREDICTIONS, step=False).mtp.attention_core_flops
    # 4 heads, 24 x 24 pairs, 24 channels of keys and 20 of values, 2 modules
    assert core == AttentionCore(as_run=2 * 2 * 4 * 576 * 44, causal=2 * 4 * 576 * 44, full_square=2 * 2 * 4 * 576 * 44)


def test_under_any_grad_mode_and_in_threads() -> None:
    spec = spec_from_fields(LLAMA, "s")
    expected = measured(spec, recompute="full")
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert measured(spec, recompute="full") == expected
    with ThreadPoolExecutor(3) as pool:
        counts = pool.map(lambda _: measured(spec, recompute="full"), range(4))
        assert all(each == expected for each in counts)


# --- The result ------------------------------------------------------------------------------------------------


OPTIONS = [
    Setup(sequence_length=24, recompute=recompute, mtp=mtp, loss_chunk=7 if mtp is None else None)
    for recompute in RECOMPUTES
    for mtp in (None, False)
]


@pytest.mark.parametrize("setup", OPTIONS, ids=lambda s: f"{s.recompute}-mtp {s.mtp}-{s.loss_chunk}")
def test_lossless_to_json_and_consistent(setup: Setup) -> None:
    analysis = analyze(TWO_PREDICTIONS, setup)
    assert msgspec.json.decode(msgspec.json.encode(analysis), type=Analysis) == analysis
    step, made = analysis.training, analysis.setup
    assert step is not None
    assert (made.recompute, made.loss_chunk, made.mtp) == (setup.recompute, setup.loss_chunk, setup.mtp is None)
    for part in ("forward", "backward", "recomputed"):
        assert getattr(step, f"{part}_flops") == sum(getattr(step, f"{part}_flops_by_component").values())
    assert step.hardware_flops - step.model_flops == step.recomputed_flops + step.flash_backward_extra_flops
    assert step.model_flops_per_token * 24 == step.model_flops
    assert step.hardware_flops_per_token * 24 == step.hardware_flops
    assert step.model_flops_causal_per_token == step.model_flops_causal / 24
    core = sum((flops.attention_core(x.attention, 24, 1) for x in TWO_PREDICTIONS.layers), AttentionCore())
    if made.mtp:  # two more layers like the last
        core += flops.attention_core(TWO_PREDICTIONS.mtp_layers[0].attention, 24, 1) * 2
    assert step.model_flops - step.model_flops_causal == 3 * (core.as_run - core.causal)
    checks = [check for check in analysis.agreement.checks if check.quantity == "training_flops"]
    assert {check.scope for check in checks} >= {"step, forward", "step, backward"}
    assert all(check.agree and check.values.keys() == {"dispatch", "formula"} for check in checks)
    assert len(checks) >= 13


@pytest.mark.parametrize("recompute", RECOMPUTES)
@pytest.mark.parametrize("length", [41, 43])
def test_a_rest_of_a_chunk_leaves_a_fraction_for_each_token(length: int, recompute: Recompute) -> None:
    """Chunks of 20 in 41 tokens: 2 x 20^2 + 1^2 = 801 pairs, which 41 does not divide; in 43, 809. Totals are exact."""
    analysis = analyze(spec_from_fields(LLAMA4, "small"), Setup(sequence_length=length, recompute=recompute))
    step = analysis.training
    assert step is not None
    # Of each layer that rotates, two products of 16 channels in 8 heads for each pair; two of the four layers do.
    pairs = 2 * 20**2 + (length - 40) ** 2
    assert main_attention_core(analysis).as_run == 2 * (2 * 2 * 16 * 8) * (pairs + length**2)
    for total in ("model_flops", "hardware_flops"):
        per_token = getattr(step, f"{total}_per_token")
        assert isinstance(getattr(step, total), int)
        assert isinstance(per_token, float)
        assert not per_token.is_integer()
        assert per_token == getattr(step, total) / length
    rows = [row.cells for row in step_flops_table(step, analysis.setup).rows]
    shown = [cells[-1] for cells in rows if "each token" in cells[0]]
    assert shown == [f"{step.hardware_flops_per_token:,.2f}", f"{step.model_flops_per_token:,.2f}"]
    assert all(check.agree for check in analysis.agreement.checks)
    assert msgspec.json.decode(msgspec.json.encode(analysis), type=Analysis) == analysis


def test_a_step_may_be_left_out() -> None:
    analysis = analyze(TWO_PREDICTIONS, Setup(sequence_length=24), step=False)
    assert analysis.training is None
    assert analysis.memory is None
    assert analysis.setup.measured_dtype == "bfloat16"
    assert analysis.model_flops == 3 * analysis.forward_flops
    assert not any(check.quantity == "training_flops" for check in analysis.agreement.checks)


def test_a_chunk_as_long_as_the_sequence_is_none() -> None:
    spec = spec_from_fields(LLAMA, "small")
    whole = analyze(spec, Setup(sequence_length=24))
    for chunk in (24, 25, 2**24):
        assert analyze(spec, Setup(sequence_length=24, loss_chunk=chunk)) == whole
    assert analyze(spec, Setup(sequence_length=24, loss_chunk=23)) != whole
