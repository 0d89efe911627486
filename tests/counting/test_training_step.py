"""FLOPs of one training step: by hand, and measured = formula for every model, however the step is run."""

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import torch_models.training.loss
from counting.analysis import Analysis, analyze
from counting.counts import AttentionCore, Counts, StepFlops
from counting.formulas import flops as analytic
from counting.formulas import step_flops as analytic_training
from counting.measurements import dispatch as step_flops
from counting.measurements.dispatch import measure_step, measure_steps
from counting.measurements.meta_device import cuda_kernels_on_meta
from counting.measurements.probe import measure
from counting.measurements.trace import DISPATCH_FORMULAS
from counting.reconcile import DisagreementError, reconcile_step
from counting.training_step import TrainingOptions
from tests.random_specs import random_layer, random_model
from tests.shrunken import DEEPSEEK_V3, FAMILIES, GEMMA2, GPT_OSS, LLAMA
from torch_models import UserError, build, build_mtp
from torch_models.fields.bundled import bundled_data
from torch_models.fields.config import read_spec, spec_from_fields
from torch_models.modules.recompute import set_recompute
from torch_models.spec import Kernels, ModelSpec, Recompute

CONFIGS = sorted(file.name for file in bundled_data().iterdir() if file.name.endswith("_config.json"))
KERNELS: list[Kernels] = ["fused", "eager"]
RECOMPUTES: list[Recompute] = ["none", "selective", "full"]
Way = tuple[Recompute, int | None]
WAYS: list[Way] = [("none", None), ("selective", None), ("full", 7)]

TWO_PREDICTIONS = spec_from_fields(DEEPSEEK_V3 | {"num_nextn_predict_layers": 2}, "two")


def derived(spec: ModelSpec, length: int, kernels: Kernels, way: Way) -> StepFlops:
    return analytic_training.step_flops(spec, length, kernels, recompute=way[0], loss_chunk=way[1])


# --- By hand ---------------------------------------------------------------------------------------------------

# Llama-7B's layer at 2,048 tokens, 2 FLOPs each: 4 projections of 4096 x 4096, 3 of 4096 x 11008, and of attention
# 2 products of 2048 x 2048 x 128 in 32 heads.
PROJECTIONS = 2 * 2048 * (4 * 4096 * 4096 + 3 * 4096 * 11008)  # 828,928,688,128
CORE = 2 * 2 * 2048 * 2048 * 128 * 32  # 68,719,476,736


def test_llama_7b_layer_by_hand() -> None:
    layer = read_spec("llama_7b_config.json").layers[0]
    fused, eager = (analytic_training.layer_step_flops(layer, 2048, 1, k, "selective") for k in KERNELS)
    assert fused.forward.total == eager.forward.total == PROJECTIONS + CORE == 897_648_164_864
    # Two products for each of the forward pass, and five for attention's two where no scores are kept.
    assert fused.backward.total == 2 * PROJECTIONS + 5 * CORE // 2 == 1_829_656_068_096
    assert eager.backward.total == 2 * PROJECTIONS + 2 * CORE == 1_795_296_329_728
    assert fused.recomputed == Counts(attention=CORE)


def test_llama_7b_by_hand() -> None:
    """32 layers, and a head of 4096 x 32000 per token."""
    analysis = analyze("llama_7b_config.json", sequence_length=2048, training=TrainingOptions(recompute="full"))
    head = 2 * 2048 * 4096 * 32_000
    step = analysis.training
    assert step is not None
    assert step.forward_flops == 32 * 897_648_164_864 + head
    assert step.backward_flops == 32 * 1_829_656_068_096 + 2 * head
    assert step.recomputed_flops == 32 * 897_648_164_864
    assert step.flash_backward_extra_flops == 32 * CORE // 2
    assert step.model_flops == 3 * step.forward_flops == analysis.model_flops
    assert step.model_flops - step.model_flops_causal == 3 * 32 * CORE // 2
    assert step.hardware_flops == step.forward_flops + step.backward_flops + step.recomputed_flops


# 4 heads, 10 positions, keys of 24 channels (16 + 8), values of 20: scores and the gradients of queries and keys, then
# the gradients of probabilities and of values, 2 * 4 * 100 * (3 * 24 + 2 * 20); the scores are made once more.
def test_fused_backward_of_unequal_heads_by_hand() -> None:
    (layer,) = {*spec_from_fields(DEEPSEEK_V3, "s").layers[:1]}
    step = analytic_training.layer_step_flops(layer, 10, 1, "fused", "none")
    assert analytic_training.fused_core_backward(layer.attention, 10, 1) == 2 * 4 * 100 * (3 * 24 + 2 * 20) == 89_600
    assert step.extra_products == 2 * 4 * 100 * 24


# 8 heads of 8 channels, 40 positions, a window of 12: five products over 40 * 12 pairs.
def test_fused_backward_visits_the_band() -> None:
    (layer,) = {*spec_from_fields(FAMILIES["mistral"], "s").layers}
    assert analytic_training.fused_core_backward(layer.attention, 40, 1) == 2 * 5 * 8 * 8 * 40 * 12
    assert analytic_training.fused_core_backward(layer.attention, 10, 1) == 2 * 5 * 8 * 8 * 10 * 10


# --- Measured = formula ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_however_it_is_run(family: str, kernels: Kernels) -> None:
    spec = spec_from_fields(FAMILIES[family], family)
    for trained in {spec, analytic_training.without_mtp(spec)}:
        measured = measure_steps(trained, 24, kernels, WAYS)
        assert measured == [derived(trained, 24, kernels, way) for way in WAYS]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("config", CONFIGS)
def test_every_config(config: str, kernels: Kernels) -> None:
    spec = read_spec(config)
    way: Way = ("full", 512) if kernels == "fused" else ("selective", None)
    assert measure_steps(spec, 2048, kernels, [way]) == [derived(spec, 2048, kernels, way)]


@pytest.mark.parametrize("seed", range(16))
def test_layers_of_random_shape(seed: int) -> None:
    pick = random.Random(seed)
    layer = random_layer(pick)
    spec = random_model(pick, layer, seed)
    length, kernels = pick.choice([1, 2, 7, 64, 333, 4096]), pick.choice(KERNELS)
    way: Way = (pick.choice(RECOMPUTES), pick.choice([None, 1, 3, 64, 5000]))
    measured = measure_step(spec, length, kernels, recompute=way[0], loss_chunk=way[1])
    assert reconcile_step(spec.name, measured, derived(spec, length, kernels, way))


@pytest.mark.parametrize("way", [("none", None), ("selective", None), ("full", 1)], ids=str)
@pytest.mark.parametrize(
    ("spec", "kernels"),
    [(TWO_PREDICTIONS, "fused"), (TWO_PREDICTIONS, "eager"), (spec_from_fields(GEMMA2, "gemma2"), "fused")],
    ids=["two-fused", "two-eager", "gemma2-fused"],
)
def test_the_whole_model_counted_without_asking_for_whom(spec: ModelSpec, kernels: Kernels, way: Way) -> None:
    """Every layer built, every chunk of the loss run, and only the sum of all ops taken."""
    model, mtp_layers = (
        make(spec, device="meta", dtype=torch.bfloat16, kernels=kernels) for make in (build, build_mtp)
    )
    for part in (model, mtp_layers):
        set_recompute(part, way[0])
    ids = torch.empty(1, 24, dtype=torch.long, device="meta")
    counter = FlopCounterMode(display=False, custom_mapping=DISPATCH_FORMULAS)
    with cuda_kernels_on_meta(), counter:
        torch_models.training.loss.training_loss(model, mtp_layers, ids, ids, loss_chunk=way[1]).backward()
    measured = measure_step(spec, 24, kernels, recompute=way[0], loss_chunk=way[1])
    assert measured.hardware == counter.get_total_flops()


@pytest.mark.parametrize("spec", [TWO_PREDICTIONS, spec_from_fields(GPT_OSS, "gpt_oss")], ids=lambda spec: spec.name)
def test_the_forward_pass_is_that_of_the_analysis(spec: ModelSpec) -> None:
    counts = measure(spec, 24, "fused")
    step = measure_step(spec, 24, "fused", recompute="full")
    assert step.forward == counts.forward_flops + counts.mtp.forward_flops
    assert step.model == 3 * step.forward.total


# --- What recomputing adds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("fields", [LLAMA, DEEPSEEK_V3, GPT_OSS], ids=["llama", "deepseek_v3", "gpt_oss"])
def test_what_is_recomputed_is_the_forward_pass_of_that_part(fields: dict[str, Any], kernels: Kernels) -> None:
    spec = analytic_training.without_mtp(spec_from_fields(fields, "s"))
    counts = measure(spec, 24, kernels)
    ways: list[Way] = [("none", None), ("selective", None), ("full", None), ("none", 7), ("full", 7), ("full", 24)]
    none, selective, full, chunked, both, one_chunk = measure_steps(spec, 24, kernels, ways)
    assert none.recomputed == Counts()
    assert selective.recomputed == Counts(attention=counts.attention_core.as_run)
    assert full.recomputed == counts.forward_flops - counts.outside_flops
    assert chunked.recomputed == counts.outside_flops
    assert both.recomputed == counts.forward_flops
    assert one_chunk == full
    for step in (selective, full, chunked, both):
        assert (step.forward, step.backward) == (none.forward, none.backward)


def test_eager_attention_has_no_extra_product() -> None:
    spec = spec_from_fields(LLAMA, "s")
    assert measure_step(spec, 24, "eager").extra_products == 0
    core = measure(spec, 24, "fused").attention_core.as_run
    assert measure_step(spec, 24, "fused").extra_products == core // 2


def test_multi_token_prediction_adds_its_layers_projections_and_heads() -> None:
    without = measure_step(analytic_training.without_mtp(TWO_PREDICTIONS), 24, "fused")
    added = measure_step(TWO_PREDICTIONS, 24, "fused").forward - without.forward
    assert added == measure(TWO_PREDICTIONS, 24, "fused").mtp.forward_flops
    assert added.lm_head == 2 * without.forward.lm_head
    assert added.mlp == 2 * 2 * 24 * 128 * 64  # of two projections, each from 128 to 64 channels


# --- Cost of measuring -----------------------------------------------------------------------------------------


def test_one_layer_of_each_kind_is_run_however_many_there_are() -> None:
    fields = DEEPSEEK_V3 | {"num_hidden_layers": 10_000, "first_k_dense_replace": 10, "num_nextn_predict_layers": 7}
    spec = spec_from_fields(fields, "deep")
    model, mtp_layers, _ = step_flops._one_of_each(spec, "fused")
    assert (len(model.model.layers), len(mtp_layers)) == (2, 1)
    assert measure_step(spec, 16, "fused") == derived(spec, 16, "fused", ("none", None))


def test_few_chunks_of_the_loss_are_run_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = []
    right = torch_models.training.loss._summed_loss

    def noting(model: Any, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        tokens.append(len(labels))
        return right(model, hidden, labels)

    monkeypatch.setattr(torch_models.training.loss, "_summed_loss", noting)
    spec = spec_from_fields(LLAMA, "s")
    assert measure_step(spec, 4096, "fused", loss_chunk=1) == derived(spec, 4096, "fused", ("none", 1))
    assert tokens == [4096] + 16 * [512]  # whole; then in chunks, forward and again for backward


def test_under_any_grad_mode_and_in_threads() -> None:
    spec = spec_from_fields(LLAMA, "s")
    expected = measure_step(spec, 24, "fused", recompute="full")
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert measure_step(spec, 24, "fused", recompute="full") == expected
    with ThreadPoolExecutor(3) as pool:
        steps = pool.map(lambda _: measure_step(spec, 24, "fused", recompute="full"), range(4))
        assert all(step == expected for step in steps)


# --- Broken once -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured_selective() -> StepFlops:
    return measure_step(TWO_PREDICTIONS, 24, "fused", recompute="selective")


@pytest.mark.parametrize("part", StepFlops.__struct_fields__)
@pytest.mark.parametrize("name", ["layer_step_flops", "mtp_layer_step_flops"])
def test_a_broken_formula_is_found(
    name: str, part: str, measured_selective: StepFlops, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(analytic_training, name)

    def broken(*given: Any) -> StepFlops:
        step = right(*given)
        return step + StepFlops(**{part: Counts(attention=1)})

    monkeypatch.setattr(analytic_training, name, broken)
    wrong = derived(TWO_PREDICTIONS, 24, "fused", ("selective", None))
    with pytest.raises(DisagreementError, match=rf"two: training_flops, step, {part}, attention: measured [\d,]+ diff"):
        reconcile_step("two", measured_selective, wrong)


@pytest.mark.parametrize("spec", [TWO_PREDICTIONS, spec_from_fields(GPT_OSS, "gpt_oss")], ids=lambda spec: spec.name)
def test_a_broken_backward_of_attention_is_found(spec: ModelSpec) -> None:
    formula: Any = analytic_training.fused_core_backward
    kind = type(spec.layers[0].attention)
    right = formula.dispatch(kind)
    formula.register(kind, lambda *given: right(*given) + 1)
    try:
        with pytest.raises(DisagreementError, match="training_flops, step, backward, attention"):
            analyze(spec, sequence_length=24, training=TrainingOptions())
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
    spec, right = spec_from_fields(GPT_OSS, "gpt_oss"), DISPATCH_FORMULAS[op]
    monkeypatch.setitem(DISPATCH_FORMULAS, op, lambda *given, **options: right(*given, **options) + 1)
    measured = measure_step(spec, 24, "fused", recompute="selective")
    with pytest.raises(DisagreementError, match=f"training_flops, step, {part}, {component}"):
        reconcile_step("gpt_oss", measured, derived(spec, 24, "fused", ("selective", None)))


def test_no_number_escapes_reconciliation() -> None:
    right = derived(TWO_PREDICTIONS, 24, "fused", ("full", 7))
    for part in StepFlops.__struct_fields__:
        for component in Counts.__struct_fields__:
            wrong = getattr(right, part) + Counts(**{component: 1})
            with pytest.raises(DisagreementError, match=f"step, {part}, {component}: .*, by \\+1"):
                reconcile_step("two", msgspec.structs.replace(right, **{part: wrong}), right)


# --- The result ------------------------------------------------------------------------------------------------


OPTIONS = [
    TrainingOptions(recompute=recompute, mtp=mtp, loss_chunk=7 if mtp is None else None)
    for recompute in RECOMPUTES
    for mtp in (None, False)
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o.recompute}-mtp {o.mtp}-{o.loss_chunk}")
def test_lossless_to_json_and_consistent(options: TrainingOptions) -> None:
    analysis = analyze(TWO_PREDICTIONS, sequence_length=24, training=options)
    assert msgspec.json.decode(msgspec.json.encode(analysis), type=Analysis) == analysis
    step = analysis.training
    assert step is not None
    assert (step.recompute, step.loss_chunk, step.mtp) == (options.recompute, options.loss_chunk, options.mtp is None)
    for part in ("forward", "backward", "recomputed"):
        assert getattr(step, f"{part}_flops") == sum(getattr(step, f"{part}_flops_by_component").values())
    assert step.hardware_flops - step.model_flops == step.recomputed_flops + step.flash_backward_extra_flops
    assert step.model_flops_per_token * step.sequence_length == step.model_flops
    assert step.hardware_flops_per_token * step.sequence_length == step.hardware_flops
    assert step.model_flops_causal_per_token == step.model_flops_causal / 24
    core = sum((analytic.attention_core(x.attention, 24, 1) for x in TWO_PREDICTIONS.layers), AttentionCore())
    if step.mtp:  # two more layers like the last
        core += analytic.attention_core(TWO_PREDICTIONS.mtp_layers[0].attention, 24, 1) * 2
    assert step.model_flops - step.model_flops_causal == 3 * (core.as_run - core.causal)
    checks = [check for check in analysis.agreement.checks if check.quantity == "training_flops"]
    assert {check.scope for check in checks} == {"step, forward", "step, backward", "step, recomputed"}
    assert all(check.ok for check in checks)
    assert len(checks) >= 13


def test_a_step_is_measured_when_it_is_asked_for() -> None:
    analysis = analyze(TWO_PREDICTIONS, sequence_length=24)
    assert analysis.training is None
    assert analysis.model_flops == 3 * analysis.forward_flops
    assert not any(check.quantity == "training_flops" for check in analysis.agreement.checks)


def test_attention_of_the_prediction_modules_by_hand() -> None:
    core = measure(TWO_PREDICTIONS, 24, "fused").mtp.attention_core
    # 4 heads, 24 x 24 pairs, 24 channels of keys and 20 of values, 2 modules
    assert core == AttentionCore(as_run=2 * 2 * 4 * 576 * 44, causal=2 * 4 * 576 * 44, full_square=2 * 2 * 4 * 576 * 44)


@pytest.mark.parametrize("chunk", [0, -1, 2**24 + 1, True, 1.5, "16"])
def test_a_chunk_that_cannot_be(chunk: Any) -> None:
    with pytest.raises(UserError, match=r"loss_chunk = .*: must be a whole number of tokens from 1 to 16777216"):
        TrainingOptions(loss_chunk=chunk)


def test_a_chunk_as_long_as_the_sequence_is_none() -> None:
    spec = spec_from_fields(LLAMA, "small")
    whole = analyze(spec, sequence_length=24, training=TrainingOptions())
    for chunk in (24, 25, 2**24):
        assert analyze(spec, sequence_length=24, training=TrainingOptions(loss_chunk=chunk)) == whole
    assert analyze(spec, sequence_length=24, training=TrainingOptions(loss_chunk=23)) != whole


@pytest.mark.parametrize(("length", "fewest"), [(1024, 4), (1025, 5), (16_777_216, 65_536)])
def test_as_many_chunks_as_there_may_be(length: int, fewest: int) -> None:
    options = TrainingOptions(loss_chunk=fewest)
    assert options.of_sequence(length, "small") == options
    fewer = TrainingOptions(loss_chunk=fewest - 1)
    with pytest.raises(UserError, match=f"^small: loss_chunk = {fewest - 1}: makes .* give at least {fewest}$"):
        fewer.of_sequence(length, "small")


def test_an_unknown_recompute_is_refused() -> None:
    with pytest.raises(UserError, match="recompute = 'some': must be one of none, selective, full"):
        TrainingOptions(recompute="some")  # type: ignore[arg-type]


def test_multi_token_prediction_that_there_is_not() -> None:
    with pytest.raises(UserError, match="mtp = on: small has no multi-token prediction"):
        analyze(spec_from_fields(LLAMA, "small"), training=TrainingOptions(mtp=True))
