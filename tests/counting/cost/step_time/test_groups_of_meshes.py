"""The groups of ranks that a model of time takes are those of torch's meshes."""

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from counting.measurements.ranks.fake_world import fake_world
from counting.ranks.profile import Axis
from tests.counting.cost.step_time.clusters import groups_of
from torch_models.layout import Layout
from torch_models.parallel.mesh import Meshes, build_meshes


def axis_meshes(meshes: Meshes) -> dict[str, DeviceMesh]:
    """The mesh of one dimension of each axis that the layout has."""
    found = {axis: getattr(meshes, axis) for axis in ("tp", "ep", "cp", "pp") if getattr(meshes, axis) is not None}
    for mesh in (meshes.data, meshes.experts):
        if mesh is not None:
            found |= {name: mesh[name] for name in mesh.mesh_dim_names or ()}
    return found


@pytest.mark.parametrize(
    ("layout", "axes"),
    [
        (Layout(dp=2, fsdp=2, cp=2, tp=2, pp=2), {"dp", "fsdp", "cp", "tp", "pp"}),
        (Layout(dp=2, fsdp=4, ep=2, pp=2), {"dp", "fsdp", "ep", "expert_dp", "expert_fsdp", "pp"}),
        (Layout(dp=4, fsdp=2, cp=2, ep=8), {"dp", "fsdp", "cp", "ep", "expert_dp", "expert_fsdp"}),
    ],
)
def test_groups_are_those_of_the_meshes(layout: Layout, axes: set[Axis]) -> None:
    rank = layout.ranks - 1
    with fake_world(layout.ranks, rank):
        meshes = axis_meshes(build_meshes(layout, "cpu"))
        assert set(meshes) == axes
        for axis, mesh in meshes.items():
            assert dist.get_process_group_ranks(mesh.get_group()) in groups_of(layout, axis), axis
