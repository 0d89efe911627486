"""The classes of ranks, against what each rank has when it is measured itself."""

from typing import Any

import pytest
import torch

from counting.measurements.meta_device import measuring
from counting.measurements.ranks.fake_world import fake_world
from counting.measurements.ranks.optimizer import RankUpdates
from counting.measurements.ranks.rank import divided_model
from counting.measurements.ranks.stand_ins import local
from tests.counting.measurements.rank_runs import layout_of, resolved, run_layout
from tests.shrunken import FAMILIES
from torch_models.fields.config import read_spec, spec_from_fields
from torch_models.parallel.mesh import build_meshes


@pytest.mark.parametrize(
    ("family", "axes"),
    [
        ("llama", {"fsdp": 5}),
        ("llama", {"dp": 2, "fsdp": 3}),
        ("llama", {"fsdp": 3, "tp": 2}),
        ("llama", {"tp": 4}),
        ("mixtral", {"fsdp": 6, "ep": 2}),
        ("deepseek_v3", {"dp": 2, "fsdp": 6, "ep": 2}),
    ],
)
def test_shares_are_what_each_rank_has(family: str, axes: dict[str, Any]) -> None:
    spec, layout = spec_from_fields(FAMILIES[family], family), layout_of(**axes)
    setup, device = resolved(spec, sequence_length=24), torch.device("meta")
    found: dict[tuple[int, int], list[int]] = {}  # parameters, moments -> ranks
    for rank in range(layout.ranks):
        with fake_world(layout.ranks, rank), measuring():
            modules = divided_model(spec, setup, layout, build_meshes(layout, "meta"), device)
            parts = [local(parameter) for parameter in modules.parameters()]
            updates = RankUpdates(setup, layout, device)
            moments = sum(updates.moments(tuple(part.shape)) for part in parts)
        found.setdefault((sum(part.numel() for part in parts), moments), []).append(rank)
    shares = run_layout(spec, layout, sequence_length=24).profile.shares
    assert [(share.parameters, share.moments, share.first_rank, share.count) for share in shares] == [
        (*of_rank, ranks[0], len(ranks)) for of_rank, ranks in found.items()
    ]


def test_more_ranks_than_rows() -> None:
    """Llama-3-8B on 2^20 ranks: most have padding alone of most parameters. All parts together are the model."""
    layout = layout_of(fsdp=2**20)
    profile = run_layout(read_spec("llama_3_8b"), layout, sequence_length=128).profile
    assert sum(share.count for share in profile.shares) == 2**20
    assert sum(share.count * share.parameters for share in profile.shares) == 8_030_261_248


def test_many_ranks_beside_those_of_tp() -> None:
    """The time does not grow with the ranks: torch's rule for both axes at once takes minutes here."""
    layout = layout_of(fsdp=2**16, tp=8)
    shares = run_layout(read_spec("llama_3_8b"), layout, sequence_length=128).profile.shares
    assert sum(share.count for share in shares) == 2**19
    norms = (2 * 32 + 1) * 4096  # every rank of tp has them whole
    assert sum(share.count * share.parameters for share in shares) == 8_030_261_248 + 7 * norms
