"""Where a layout is measured: here, or in another process if this one has a process group."""

import os
from pathlib import Path

import msgspec
import pytest
import torch.distributed as dist

from counting.measurements.ranks import measure_ranks
from counting.measurements.ranks.fake_world import fake_world
from counting.ranks.profile import RankProfile
from tests.counting.measurements.rank_runs import layout_of, resolved
from tests.shrunken import LLAMA
from tests.worlds import run_world
from torch_models.errors import ArgumentError
from torch_models.fields.config import spec_from_fields

SPEC = spec_from_fields(LLAMA, "llama")
SETUP = resolved(SPEC, sequence_length=24)


def measured_by_a_rank(folder: str) -> RankProfile:
    os.chdir(folder)
    return measure_ranks(SPEC, SETUP, layout_of(fsdp=8))


def test_a_rank_of_a_job_measures_in_another_process(tmp_path: Path) -> None:
    """In any working directory; the job's group stays as it is."""
    assert run_world(measured_by_a_rank, 1, str(tmp_path)) == [measure_ranks(SPEC, SETUP, layout_of(fsdp=8))]


def test_an_error_comes_back_as_it_is() -> None:
    layout = msgspec.structs.replace(layout_of(tp=3), tp=3)
    with pytest.raises(ArgumentError) as here:
        measure_ranks(SPEC, SETUP, layout)
    with fake_world(2):
        with pytest.raises(ArgumentError) as elsewhere:
            measure_ranks(SPEC, SETUP, layout)
        assert dist.get_world_size() == 2
    assert str(elsewhere.value) == str(here.value)
    assert (elsewhere.value.field, elsewhere.value.value, elsewhere.value.rule) == (
        here.value.field,
        here.value.value,
        here.value.rule,
    )
