"""The few layers that are measured stand for all: the same numbers as from a model of which every layer is run."""

from typing import Any

import pytest

from counting.ranks.shallow import shallow
from tests.counting.measurements.rank_runs import layout_of, run_layout, whole
from tests.shrunken import FAMILIES, REPRESENTATIVE
from torch_models.fields.config import spec_from_fields

LAYOUTS: list[dict[str, Any]] = [
    {"fsdp": 4},
    {"fsdp": 3, "zero": 2},
    {"fsdp": 4, "zero": 1},
    {"dp": 2, "fsdp": 2, "grouping": "torchtitan"},
    {"dp": 2, "fsdp": 1},
    {"tp": 2},
    {"dp": 2, "fsdp": 2, "tp": 2, "grouping": "torchtitan"},
    {"dp": 2, "fsdp": 4, "ep": 2, "zero": 2},
    {"fsdp": 2, "ep": 2, "grouping": "torchtitan"},
]
RUNS: list[dict[str, Any]] = [
    {},
    {"micro_batches": 4, "recompute": "full"},
    {"micro_batches": 2, "precision": "bf16", "loss_chunk": 16, "optimizer": "adamw-foreach"},
]
# Experts of which two ranks get rows of 16 bytes.
WIDER = {
    "mixtral": {"intermediate_size": 48},
    "gpt_oss": {"intermediate_size": 48},
    "deepseek_v3": {"moe_intermediate_size": 32},
}
SMALL: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"dp": 2, "fsdp": 2, "grouping": "torchtitan"}),
    ("deepseek_v3", {"fsdp": 3, "zero": 2}),
    ("llama", {"fsdp": 2, "tp": 2}),
    ("mixtral", {"fsdp": 4, "ep": 2}),
]


def compare(family: str, axes: dict[str, Any], run: dict[str, Any]) -> None:
    spec = spec_from_fields(FAMILIES[family] | WIDER.get(family, {}) | {"num_hidden_layers": 7}, family)
    layout, few = layout_of(**axes), shallow(spec)
    assert few.spec.num_layers < 7
    of_few = run_layout(few, layout, sequence_length=40, **run)
    of_all = run_layout(whole(spec), layout, sequence_length=40, **run)
    assert of_few.memory == of_all.memory
    assert of_few.traffics == of_all.traffics
    assert of_few.profile.flops == of_all.profile.flops
    assert of_few.profile.shares == of_all.profile.shares


@pytest.mark.parametrize(("family", "axes"), SMALL)
def test_few_layers_stand_for_all(family: str, axes: dict[str, Any]) -> None:
    compare(family, axes, {"micro_batches": 4, "recompute": "full", "clip_gradients": True})


@pytest.mark.sweep
@pytest.mark.parametrize("run", RUNS, ids=str)
@pytest.mark.parametrize("axes", LAYOUTS, ids=str)
@pytest.mark.parametrize("family", REPRESENTATIVE)
def test_few_layers_stand_for_all_everywhere(family: str, axes: dict[str, Any], run: dict[str, Any]) -> None:
    if "ep" in axes and family not in WIDER:
        pytest.skip("no experts")
    compare(family, axes, run)
