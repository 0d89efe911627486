"""A layout of one rank divides nothing: its numbers are those of one device, which other code measures."""

from typing import Any

import pytest

from tests.counting.measurements.rank_runs import layout_of, run_layout
from tests.shrunken import FAMILIES
from tests.witnesses import measured, memory_of
from torch_models.fields.config import spec_from_fields


@pytest.mark.parametrize(
    "run",
    [
        {},
        {"micro_batches": 3, "recompute": "full"},
        {"precision": "mixed-fp32-gradients"},
        {"precision": "bf16", "optimizer": "adamw-foreach", "loss_chunk": 8},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", "deepseek_v3"])
def test_one_rank_is_one_device(family: str, run: dict[str, Any]) -> None:
    spec = spec_from_fields(FAMILIES[family], family)
    options = {"mtp": False if spec.mtp_layers else None, **run}
    counts = measured(spec, **options)
    profile, memory, traffics = run_layout(spec, layout_of(), sequence_length=24, **options)
    assert memory.phases == memory_of(spec, counts, **options).phases
    assert memory.states == memory_of(spec, counts, **options).states
    assert profile.flops == counts.training_flops
    assert traffics == {}
