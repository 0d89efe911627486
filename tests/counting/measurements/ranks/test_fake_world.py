"""The process group without other processes leaves nothing behind."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp._fully_shard import _fsdp_param
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

from counting.measurements.ranks.fake_world import fake_world
from tests.counting.measurements.rank_runs import layout_of, run_layout
from tests.shrunken import LLAMA
from torch_models.fields.config import spec_from_fields

SPEC = spec_from_fields(LLAMA, "llama")


def what_is_replaced() -> list[object]:
    return [
        vars(torch).get("meta"),
        vars(torch.UntypedStorage).get("resize_"),
        *(vars(FSDPParamGroup)[name] for name in ("unshard", "wait_for_unshard", "post_backward")),
        vars(FSDPParamGroup)["_validate_no_meta_params"],
        _fsdp_param._chunk_with_empty,
    ]


def test_group_has_ranks() -> None:
    with fake_world(48, 7):
        assert (dist.get_world_size(), dist.get_rank()) == (48, 7)
    assert not dist.is_initialized()


def test_nothing_is_left() -> None:
    before = what_is_replaced()
    run_layout(SPEC, layout_of(dp=2, fsdp=2, tp=2), sequence_length=24)
    assert what_is_replaced() == before
    assert not dist.is_initialized()


def test_nothing_is_left_after_an_error() -> None:
    before = what_is_replaced()
    with pytest.raises(ZeroDivisionError), fake_world(2):
        raise ZeroDivisionError
    assert what_is_replaced() == before
    assert not dist.is_initialized()


def test_a_group_that_is_there_is_not_replaced() -> None:
    with fake_world(2), pytest.raises(AssertionError, match="has a process group"), fake_world(3):
        pass
    assert not dist.is_initialized()


def test_measuring_twice_gives_the_same() -> None:
    """Also after other layouts with equal meshes."""
    first = run_layout(SPEC, layout_of(fsdp=2, tp=2), sequence_length=24)
    for rank in (1, 2, 3):
        run_layout(SPEC, layout_of(fsdp=2, tp=2), rank, sequence_length=24)
    assert run_layout(SPEC, layout_of(fsdp=2, tp=2), sequence_length=24) == first
