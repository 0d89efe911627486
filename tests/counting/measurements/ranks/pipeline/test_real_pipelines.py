"""Measured = real in pipelines: torch's schedules in a group of gloo processes, on tensors with values.

The most bytes that are alive in each pass, and all that is sent, on every rank, against a rank on the meta device.
"""

from typing import Any

import pytest

from counting.measurements.ranks import measure_pipeline
from tests.counting.measurements.rank_runs import layout_of, resolved
from tests.counting.measurements.ranks.pipeline.pipeline_runs import composed_moments, run_whole
from tests.counting.measurements.ranks.real_ranks import balanced_routing, run_of_real_rank
from tests.shrunken import FAMILIES
from tests.worlds import World
from torch_models.fields.config import spec_from_fields
from torch_models.stages import stages_of

LENGTHS = {"deepseek_v3": 32}  # tokens of which the experts get equally many rows

# Family, ranks, axes, settings of the step.
SMALL = [
    ("llama", 2, {"pp": 2}, {}),
    ("mixtral", 2, {"pp": 2, "schedule": "dualpipev"}, {}),
    ("llama", 4, {"pp": 2, "fsdp": 2}, {"clip_gradients": True}),
    ("llama", 4, {"pp": 2, "tp": 2, "schedule": "zbv"}, {}),
]
MATRIX = [
    ("llama", 2, {"pp": 2, "schedule": "gpipe"}, {}),
    ("llama", 2, {"pp": 2, "schedule": "interleaved"}, {"recompute": "selective"}),
    ("llama", 2, {"pp": 2, "schedule": "zb"}, {"precision": "bf16", "clip_gradients": True}),
    ("deepseek_v3", 2, {"pp": 2, "schedule": "zbv"}, {"recompute": "full"}),
    ("llama", 4, {"pp": 4}, {}),
    ("llama", 4, {"pp": 4, "schedule": "dualpipev"}, {}),
    ("llama", 4, {"pp": 2, "fsdp": 2, "schedule": "interleaved"}, {"recompute": "full"}),
    ("llama", 4, {"pp": 2, "fsdp": 2, "schedule": "zb"}, {}),
    ("llama", 4, {"pp": 2, "dp": 2, "schedule": "zbv"}, {}),
    ("mixtral", 4, {"pp": 2, "fsdp": 2, "ep": 2, "schedule": "dualpipev"}, {"recompute": "full"}),
    ("deepseek_v3", 4, {"pp": 2, "fsdp": 2, "ep": 2}, {"mtp": True, "clip_gradients": True}),
    ("deepseek_v3", 4, {"pp": 2, "fsdp": 2, "ep": 2, "schedule": "dualpipev"}, {"mtp": True, "clip_gradients": True}),
]


def compare(worlds: dict[int, World], family: str, ranks: int, axes: dict[str, Any], run: dict[str, Any]) -> None:
    spec = spec_from_fields(FAMILIES[family] | {"num_hidden_layers": 8}, family)
    length = LENGTHS.get(family, 24)
    layout = layout_of(grouping="torchtitan", **axes)
    setup = resolved(spec, **{"sequence_length": length, "kernels": "eager", "micro_batches": 2 * layout.pp, **run})
    real = worlds[ranks].run(run_of_real_rank, spec, setup, layout)
    with balanced_routing():
        profiles = measure_pipeline(spec, setup, layout)
        for rank, found in enumerate(real):
            profile = profiles[rank // layout.ranks_of_stage]
            assert found == run_whole(spec, setup, layout, rank, steps=2)
            assert profile.micro_batches_run == setup.micro_batches
            assert found.clipping == profile.gradient_clipping
            assert (found.moments, found.peak) == composed_moments(profile, stages_of(spec, layout))


@pytest.mark.parametrize(("family", "ranks", "axes", "run"), SMALL)
def test_real_equals_fake(
    worlds: dict[int, World], family: str, ranks: int, axes: dict[str, Any], run: dict[str, Any]
) -> None:
    compare(worlds, family, ranks, axes, run)


@pytest.mark.sweep
@pytest.mark.parametrize(("family", "ranks", "axes", "run"), MATRIX)
def test_real_equals_fake_everywhere(
    worlds: dict[int, World], family: str, ranks: int, axes: dict[str, Any], run: dict[str, Any]
) -> None:
    compare(worlds, family, ranks, axes, run)
