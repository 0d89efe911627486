"""The analysis of a step that is spread over ranks: its checks, and the variants that need less memory."""

import msgspec
import pytest

from counting.analysis import Analysis, analyze
from counting.formulas import layouts
from counting.reconcile import DisagreementError
from counting.setup import Setup
from tests.random_specs import widened
from tests.shrunken import DEEPSEEK_V3, FAMILIES
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout
from torch_models.spec import ModelSpec, runs_of

LENGTH = 1100  # more than one chunk of 1,024


def divisible(family: str) -> ModelSpec:
    spec = spec_from_fields(FAMILIES[family], "shrunken")
    runs = runs_of(widened(layer, 2) for layer in spec.layers)
    return msgspec.structs.replace(
        spec, layer_runs=runs, mtp_layers=tuple(widened(layer, 2) for layer in spec.mtp_layers)
    )


def peak(analysis: Analysis) -> int:
    assert analysis.rank_classes
    return max(each.memory.peak_bytes for each in analysis.rank_classes)


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("llama", Layout(fsdp=3)),
        ("gpt_oss", Layout(fsdp=2, tp=2)),
        ("deepseek_v3", Layout(fsdp=4, ep=2, zero=2)),
        ("llama", Layout(cp=2)),
    ],
    ids=["fsdp", "fsdp-tp", "fsdp-ep", "cp"],
)
def test_an_alternative_is_what_ranks_run_so_measure(family: str, layout: Layout) -> None:
    spec, setup = divisible(family), Setup(sequence_length=LENGTH)
    analysis = analyze(spec, setup, layout=layout)
    assert analysis.rank_classes
    (alternatives,) = (each.memory.alternatives for each in analysis.rank_classes if each.memory.alternatives)
    for other in alternatives:
        run_so = msgspec.structs.replace(
            setup, kernels=other.kernels, recompute=other.recompute, loss_chunk=other.loss_chunk
        )
        measured = analyze(spec, run_so, layout=layout)
        assert measured.rank_classes
        assert peak(measured) == other.peak_bytes, other
        found = measured.rank_classes[0]
        # Fused attention computes its scores again in backward, whether a pass is run again or not.
        base = analysis.rank_classes[0].hardware_flops if other.kernels == "fused" else found.model_flops
        assert found.hardware_flops - base == other.recomputed_flops, other


def scopes(layout: Layout) -> set[str]:
    agreement = analyze(spec_from_fields(DEEPSEEK_V3, "shrunken"), layout=layout).agreement
    return {check.scope for check in agreement.checks}


def test_the_busiest_rank_is_no_mean_of_the_ranks() -> None:
    """Its rows are not those of the others, so that sums over the ranks are not compared."""
    assert "all ranks" in scopes(Layout(fsdp=2, ep=2))
    assert scopes(Layout(fsdp=2, ep=2)) - scopes(Layout(fsdp=2, ep=2, expert_imbalance=1.5)) == {"all ranks"}


@pytest.mark.parametrize("layout", [Layout(dp=4, ep=2), Layout(dp=2, fsdp=2, ep=4)], ids=["dp-ep", "dp-fsdp-ep"])
def test_experts_on_ranks_of_replicas_add_up(layout: Layout) -> None:
    """There are fewer copies of them than replicas; a sum that differs is an error."""
    assert "all ranks" in scopes(layout)


@pytest.mark.parametrize("forgotten", ["replicated_parameters", "replicated_forward_flops"])
def test_ranks_that_do_not_add_up(forgotten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What every rank of tp has is in no other check than the sums over the ranks."""
    monkeypatch.setattr(layouts, forgotten, lambda *_, **__: 0)
    with pytest.raises(DisagreementError, match="sum over ranks"):
        analyze(divisible("deepseek_v3"), layout=Layout(tp=2))
