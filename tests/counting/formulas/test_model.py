"""A whole model by formula and by simulation: which fields each fills in, and that they agree."""

from typing import Any

import pytest

from counting.counts import Counts, ModelCounts
from counting.formulas.flops import head_flops
from counting.formulas.memory import simulate
from counting.formulas.model import by_formula
from counting.reconcile import DisagreementError, reconcile
from counting.setup import Setup, resolve
from tests.shrunken import DEEPSEEK_V3, FAMILIES
from torch_models.fields.config import read_spec, spec_from_fields
from torch_models.spec import ModelSpec


def both(spec: ModelSpec, *, step: bool = True, **changes: Any) -> tuple[ModelCounts, ModelCounts]:
    setup = resolve(Setup(**{"sequence_length": 24, **changes}), spec)
    return by_formula(spec, setup, step=step), simulate(spec, setup, step=step)


def filled(struct: Any) -> set[str]:
    return {field for field in struct.__struct_fields__ if getattr(struct, field) is not None}


@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES.keys())
def test_each_speaks_of_its_own_and_they_agree_where_both_do(fields: dict[str, Any]) -> None:
    formula, simulation = both(spec_from_fields(fields, "shrunken"), clip_gradients=True)
    peaks = {"peak_memory_bytes", "peak_memory_no_grad_bytes"}
    of_scans = {"scan_flops", "elementwise_operations"}  # no layer here carries a state
    for by_hand, simulated in zip(formula.layers, simulation.layers, strict=True):
        assert filled(by_hand) == set(by_hand.__struct_fields__) - peaks - of_scans
        assert filled(simulated) == {"kind", "count", *peaks}
    assert formula.step_profile is not None
    assert simulation.step_profile is not None
    simulated_alone = {"first_micro_batch", "later_micro_batch", "gradient_clipping", "optimizer_step"}
    of_a_rank = {"last_micro_batch"}
    assert filled(formula.step_profile) == set(formula.step_profile.__struct_fields__) - simulated_alone - of_a_rank
    assert filled(simulation.step_profile) == set(simulation.step_profile.__struct_fields__) - of_a_rank - {
        "outside_states",
        "later_micro_batch",
    }
    for by_hand, simulated in zip(formula.step_profile.layers, simulation.step_profile.layers, strict=True):
        assert filled(by_hand) == {"kind", "count", "states", "held"}
        assert filled(simulated) == {"kind", "count", "held"}
    merged, agreement = reconcile("shrunken", {"formula": formula, "simulation": simulation})
    proven = {f"{check.scope}: {check.component}" for check in agreement.checks if check.proven}
    assert proven >= {"step: embedding_held", "step: loss_held", "step: inputs"}
    assert any(component.endswith("held") and "layer" in component for component in proven)
    assert merged.whole_model().parameters == formula.whole_model().parameters


def test_a_byte_more_is_a_disagreement(monkeypatch: pytest.MonkeyPatch) -> None:
    from counting.formulas import model

    monkeypatch.setattr(model, "loss_held", lambda spec, setup: 1 + original(spec, setup))
    from counting.formulas.held import loss_held as original

    formula, simulation = both(spec_from_fields(DEEPSEEK_V3, "s"))
    with pytest.raises(DisagreementError, match="loss_held"):
        reconcile("s", {"formula": formula, "simulation": simulation})


def test_without_a_step_there_is_none() -> None:
    for counts in both(spec_from_fields(DEEPSEEK_V3, "s"), step=False):
        assert counts.training_flops is None
        assert counts.step_profile is None


def test_the_optimiser_of_a_recipe_that_torch_cannot_run_is_not_simulated() -> None:
    spec = spec_from_fields(DEEPSEEK_V3, "s")
    steps = {precision: both(spec, precision=precision)[1].step_profile for precision in ("fp8", "bf16", "mixed")}
    worst = {precision: step and step.optimizer_step for precision, step in steps.items()}
    # Nothing of bf16's update is in another format; of "mixed" the largest gradient is, in fp32: 16 experts' gate, up.
    assert worst == {"fp8": None, "bf16": 0, "mixed": 4 * 16 * 2 * 24 * 64}


def test_multi_token_prediction_that_is_not_trained_is_counted_but_in_no_step() -> None:
    spec = spec_from_fields(DEEPSEEK_V3 | {"num_nextn_predict_layers": 2}, "s")
    (trained, _), (untrained, _) = both(spec), both(spec, mtp=False)
    assert trained.mtp == untrained.mtp
    assert trained.mtp.forward_flops is not None
    assert trained.training_flops is not None
    assert untrained.training_flops is not None
    more = trained.training_flops.forward - untrained.training_flops.forward
    assert more == trained.mtp.forward_flops
    assert more.lm_head == 2 * head_flops(spec, 24, 1).lm_head


def test_a_chunked_loss_multiplies_the_head_once_more() -> None:
    spec = read_spec("llama_7b")
    whole, chunked = (both(spec, sequence_length=2048, loss_chunk=c)[0].training_flops for c in (None, 256))
    assert whole is not None
    assert chunked is not None
    assert chunked.recomputed == head_flops(spec, 2048, 1)
    assert whole.recomputed == Counts()
    assert (chunked.forward, chunked.backward) == (whole.forward, whole.backward)
