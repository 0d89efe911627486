"""What is recomputed of each layer where ranks divide the positions: both witnesses of every rank of cp."""

from typing import Any

import pytest
from msgspec import structs

from counting.formulas.layouts import ranks_by_formula
from counting.measurements.ranks.process import measure_model
from counting.ranks.shallow import shallow
from counting.reconcile import reconcile
from tests.counting.formulas.layouts.cases import layout_of, setup_of
from tests.random_specs import widened
from tests.shrunken import FAMILIES
from torch_models.fields.config import spec_from_fields
from torch_models.recomputed_layers import with_recompute
from torch_models.spec import LayerRun, ModelRecompute

AXES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-cp": ("llama", {"cp": 2}),
    "llama-cp-tp": ("llama", {"cp": 4, "tp": 2}),
    "qwen2-cp-fsdp": ("qwen2", {"cp": 2, "fsdp": 2}),
    "deepseek_v3-cp-tp": ("deepseek_v3", {"cp": 2, "tp": 2}),
    "mixtral-cp-fsdp-ep": ("mixtral", {"cp": 2, "fsdp": 2, "ep": 2}),
}
FEW = [("llama-cp", 2), ("llama-cp-tp", "per_op"), ("deepseek_v3-cp-tp", "per_op"), ("mixtral-cp-fsdp-ep", "per_op")]
ALL = [(axes, recompute) for axes in AXES for recompute in ("selective", "per_op", "full", 2)]


@pytest.mark.parametrize(
    ("axes", "recompute"),
    [*FEW, *(pytest.param(*each, marks=pytest.mark.sweep) for each in ALL if each not in FEW)],
)
def test_ring_attention(axes: str, recompute: ModelRecompute) -> None:
    """The merged output of the ring is kept as that of one kernel: by operation, keys are not gathered once more."""
    family, of_layout = AXES[axes]
    spec = spec_from_fields(FAMILIES[family], "shrunken")
    runs = tuple(LayerRun(layer=widened(run.layer, 2), count=run.count) for run in spec.layer_runs)
    spec = structs.replace(spec, layer_runs=runs, mtp_layers=tuple(widened(layer, 2) for layer in spec.mtp_layers))
    spec = with_recompute(spec, recompute)
    setup, layout = setup_of(spec, sequence_length=256, mtp=None, recompute=recompute), layout_of(**of_layout)
    for place in range(layout.cp):
        measured = measure_model(shallow(spec), setup, layout, rank=place * layout.tp)
        assert measured.context_rank == place
        reconcile(family, {"measured": measured, "formula": ranks_by_formula(spec, setup, layout, place)})


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe"])
def test_experts_apart_within_a_layer_that_runs_again(family: str) -> None:
    """fully_shard marks what it does to experts for the profiler, and less of it when the layer runs again."""
    spec = with_recompute(spec_from_fields(FAMILIES[family], "shrunken"), "per_op")
    setup, layout = setup_of(spec, sequence_length=64, recompute="per_op"), layout_of(fsdp=2, ep=2)
    measured = measure_model(shallow(spec), setup, layout)
    reconcile(family, {"measured": measured, "formula": ranks_by_formula(spec, setup, layout)})
