"""The device meshes of a layout: which ranks do what together."""

from typing import NamedTuple

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from torch_models.errors import ArgumentError, UserError
from torch_models.layout import Layout
from torch_models.parallel.checks import borrows_evenly


class Meshes(NamedTuple):
    """The meshes of one layout, all parts of one root mesh. A mesh is None where the layout does not use it."""

    data: DeviceMesh | None  # of fully_shard: (fsdp,), or (dp, fsdp) if there are replicas
    tp: DeviceMesh | None
    ep: DeviceMesh | None
    experts: DeviceMesh | None  # of fully_shard for experts: (expert_fsdp,), or (expert_dp, expert_fsdp)


def build_meshes(layout: Layout, device_type: str) -> Meshes:
    """Return the meshes of a resolved `layout` over the ranks of the process group that there is.

    Ranks are numbered with tp innermost, then ep (tp and ep do not go together), then fsdp, then dp. Every rank must
    call this. Raises `UserError` if there is no process group or if it has another number of ranks than the layout.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise UserError("a layout needs a process group; call torch.distributed.init_process_group first")
    if dist.get_world_size() != layout.ranks:
        raise ArgumentError("num_gpus", dist.get_world_size(), f"must be the product of the axes, {layout.ranks}")
    if layout.ep > 1:
        return _with_experts(layout, device_type)
    sizes = {"dp": layout.replicas, "fsdp": layout.fsdp, "tp": layout.tp}
    # fully_shard needs a dimension of shards, also if there is one shard.
    used = [name for name, size in sizes.items() if size > 1 or (name == "fsdp" and layout.is_sharded)]
    if not used:
        return Meshes(None, None, None, None)
    root = init_device_mesh(device_type, tuple(sizes[name] for name in used), mesh_dim_names=tuple(used))
    data = tuple(name for name in used if name != "tp")
    return Meshes(root[data] if data else None, root["tp"] if "tp" in used else None, None, None)


def _with_experts(layout: Layout, device_type: str) -> Meshes:
    """Two views of the same ranks: by shards of all other parameters, and by shards of the experts."""
    if layout.tp > 1:
        raise ArgumentError("ep", layout.ep, "must be 1 with tp > 1: each of the two divides the experts")
    ranks = layout.data_ranks
    if not borrows_evenly(layout.ep, layout):
        rule = f"must divide fsdp ({layout.fsdp}), or be a multiple of it that divides dp x fsdp ({ranks})"
        raise ArgumentError("ep", layout.ep, rule)
    root = init_device_mesh(device_type, (ranks,), mesh_dim_names=("ranks",))
    data = _view(root, {"dp": layout.replicas, "fsdp": layout.fsdp})
    experts = _view(root, {"expert_dp": layout.expert_replicas, "expert_fsdp": layout.expert_fsdp, "ep": layout.ep})
    of_experts = tuple(name for name in experts.mesh_dim_names or () if name != "ep")
    return Meshes(data, None, experts["ep"], experts[of_experts])


def _view(root: DeviceMesh, sizes: dict[str, int]) -> DeviceMesh:
    """The root's ranks by the dimensions in `sizes`, without that of replicas if there is one."""
    used = {name: size for name, size in sizes.items() if size > 1 or name not in ("dp", "expert_dp")}
    return root._unflatten(0, tuple(used.values()), tuple(used))
