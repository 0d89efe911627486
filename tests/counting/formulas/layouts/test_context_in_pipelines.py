"""Context parallelism in the stages of a pipeline: the closed forms equal what is measured, of the same place in cp."""

from typing import Any

import pytest

from counting.formulas.layouts import pipeline_by_formula
from counting.measurements.ranks import measure_pipeline
from counting.ranks.pipeline import PipelineProfile
from counting.ranks.pipeline_memory import pipeline_memory
from counting.reconcile import reconcile
from counting.setup import Setup
from tests.counting.formulas.layouts.cases import layout_of, setup_of
from tests.shrunken import FAMILIES
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout
from torch_models.spec import ModelSpec
from torch_models.stages import stages_of

CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llama", {"cp": 2, "pp": 2, "fsdp": 2, "schedule": "interleaved"}, {"recompute": "per_op", "micro_batches": 4}),
    ("mixtral", {"cp": 2, "pp": 2, "fsdp": 2, "ep": 2}, {"micro_batches": 3}),
    ("qwen3", {"cp": 3, "pp": 2, "dp": 2}, {"recompute": "full"}),
    ("llama", {"cp": 2, "pp": 2, "schedule": "zbv"}, {"micro_batches": 4}),
]


def peaks(spec: ModelSpec, setup: Setup, layout: Layout, profiles: tuple[PipelineProfile, ...]) -> list[int]:
    """The peak of each place in the pipeline."""
    stages = stages_of(spec, layout)
    return [pipeline_memory(stages, setup, each, each.shares[0], "formula").peak_bytes for each in profiles]


@pytest.mark.parametrize(("family", "axes", "fields"), CASES, ids=str)
def test_families(family: str, axes: dict[str, Any], fields: dict[str, Any]) -> None:
    spec = spec_from_fields(FAMILIES[family] | {"num_hidden_layers": 4}, "shrunken")
    setup = setup_of(spec, **{"sequence_length": 12 * axes["cp"], "micro_batches": 2} | fields)
    layout = layout_of(**axes)
    measured, formula = measure_pipeline(spec, setup, layout), pipeline_by_formula(spec, setup, layout)
    assert [each.context_rank for each in measured] == [each.context_rank for each in formula]
    assert len(measured) == len(formula) == layout.pp
    for of_measured, of_formula in zip(measured, formula, strict=True):
        reconcile(family, {"measured": of_measured, "formula": of_formula})


def test_stages_add_up_to_the_undivided_pipeline() -> None:
    """A rank of cp 4 has the forward FLOPs of one that has whole sequences, divided by 4, and skips the rest."""
    spec = spec_from_fields(FAMILIES["llama"] | {"num_hidden_layers": 4}, "shrunken")
    setup = setup_of(spec, sequence_length=48, micro_batches=4)
    whole, parts = (pipeline_by_formula(spec, setup, layout_of(cp=cp, pp=2)) for cp in (1, 4))
    for alone, of_cp in zip(whole, parts, strict=True):
        assert of_cp.flops.full_forward * 4 == alone.flops.forward
        assert of_cp.flops.skipped_by_causality.attention > 0
    assert max(peaks(spec, setup, layout_of(cp=4, pp=2), parts)) < max(peaks(spec, setup, layout_of(pp=2), whole))
