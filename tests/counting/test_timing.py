"""The work of a step is measured once, and not in a process that has a process group."""

from msgspec import structs

from counting.measurements.ranks.fake_world import fake_world
from counting.timing import work_of_step
from tests.counting.measurements.rank_runs import layout_of, resolved
from tests.shrunken import LLAMA
from torch_models.fields.config import spec_from_fields

SPEC = spec_from_fields(LLAMA, "llama")
SETUP = resolved(SPEC, sequence_length=24)


def test_work_is_measured_once() -> None:
    again = structs.replace(SPEC), structs.replace(SETUP)
    assert work_of_step(SPEC, SETUP) is work_of_step(*again)
    assert work_of_step(SPEC, SETUP, layout_of(fsdp=2)) is work_of_step(*again, layout_of(fsdp=2))


def test_work_is_measured_in_another_process() -> None:
    """If this one has a process group."""
    layout = layout_of(fsdp=2, zero=1)
    here = work_of_step(SPEC, SETUP, layout)
    work_of_step.cache_clear()
    with fake_world(3):
        assert work_of_step(SPEC, SETUP, layout) == here
