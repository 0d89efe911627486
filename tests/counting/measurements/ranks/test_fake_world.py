"""The process group without other processes leaves nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp._fully_shard import _fsdp_param
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

from counting.measurements.ranks.fake_world import fake_world
from tests.counting.measurements.rank_runs import RankRun, layout_of, run_layout
from tests.shrunken import LLAMA
from torch_models.fields.config import spec_from_fields

ROOT = Path(__file__).resolve().parents[4]
SPEC = spec_from_fields(LLAMA, "llama")


def what_is_replaced() -> list[object]:
    return [
        sys.excepthook,
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


def test_measuring_again_gives_the_same() -> None:
    """In one process, after layouts with equal meshes whose process groups had other names."""
    layouts = [layout_of(tp=2), layout_of(fsdp=2, tp=2), layout_of(dp=2, fsdp=1, tp=2)]

    def measured() -> list[RankRun]:
        return [
            run_layout(SPEC, layout, rank, sequence_length=24) for layout in layouts for rank in range(layout.ranks)
        ]

    assert measured() == measured()


def test_compiler_is_not_imported() -> None:
    """It takes as long to import as torch."""
    script = (
        "import sys\n"
        "from counting.measurements.ranks import measure_ranks\n"
        "from tests.counting.measurements.rank_runs import layout_of, resolved\n"
        "from tests.shrunken import LLAMA\n"
        "from torch_models.fields.config import spec_from_fields\n"
        "spec = spec_from_fields(LLAMA, 'llama')\n"
        "measure_ranks(spec, resolved(spec, sequence_length=24), layout_of(fsdp=2, tp=2))\n"
        "print([name for name in ('torch._dynamo', 'torch._dynamo.config', 'torch._inductor') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (ran.stdout, ran.stderr) == ("[]\n", "")
