"""The device meshes of a layout: which ranks do what together."""

from typing import NamedTuple

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from torch_models.errors import ArgumentError, UserError
from torch_models.layout import Layout
from torch_models.parallel.checks import borrows_evenly


class Meshes(NamedTuple):
    """The meshes of one layout, all parts of one root mesh. A mesh is None where the layout does not use it."""

    data: DeviceMesh | None = None  # of fully_shard: (fsdp,), or (dp, fsdp) if there are replicas; fsdp includes cp
    tp: DeviceMesh | None = None
    ep: DeviceMesh | None = None
    experts: DeviceMesh | None = None  # of fully_shard for experts: (expert_fsdp,), or (expert_dp, expert_fsdp)
    cp: DeviceMesh | None = None
    pp: DeviceMesh | None = None


def build_meshes(layout: Layout, device_type: str) -> Meshes:
    """Return the meshes of a resolved `layout` over the ranks of the process group that there is.

    Ranks are numbered with tp innermost, then ep (tp and ep do not go together), then cp, fsdp, dp, and pp. Every rank
    must call this. Raises `UserError` if there is no process group or if it has another number of ranks than the
    layout.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise UserError("a layout needs a process group; call torch.distributed.init_process_group first")
    if dist.get_world_size() != layout.ranks:
        raise ArgumentError("num_gpus", dist.get_world_size(), f"must be the product of the axes, {layout.ranks}")
    _check_experts(layout)
    # Views of the same ranks, each with the dimensions of one kind of work.
    root = init_device_mesh(device_type, (layout.ranks,), mesh_dim_names=("ranks",))
    data = {"dp": layout.replicas} if layout.replicas > 1 else {}
    if layout.is_sharded:  # fully_shard needs a dimension of shards, also if there is one shard
        data["fsdp"] = layout.shards
    view = _view(root, {"pp": layout.pp, **data, "tp": layout.tp}, used=tuple(data))
    found = Meshes(data=view[tuple(data)] if data else None)
    if layout.tp > 1:
        found = found._replace(tp=view["tp"])
    if layout.pp > 1:
        found = found._replace(pp=view["pp"])
    if layout.cp > 1:
        by_position = {"pp": layout.pp, "data": layout.data_ranks, "cp": layout.cp, "tp": layout.tp}
        found = found._replace(cp=_view(root, by_position)["cp"])
    if layout.ep > 1:
        replicas = {"expert_dp": layout.expert_replicas} if layout.expert_replicas > 1 else {}
        of_experts = {**replicas, "expert_fsdp": layout.expert_fsdp}
        view = _view(root, {"pp": layout.pp, **of_experts, "ep": layout.ep}, used=tuple(of_experts))
        found = found._replace(ep=view["ep"], experts=view[tuple(of_experts)])
    return found


def _check_experts(layout: Layout) -> None:
    if layout.ep == 1:
        return
    if layout.tp > 1:
        raise ArgumentError("ep", layout.ep, "must be 1 with tp > 1: each of the two divides the experts")
    if not borrows_evenly(layout.ep, layout):
        shards, ranks = layout.shards, layout.token_ranks
        rule = f"must divide fsdp x cp ({shards}), or be a multiple of it that divides dp x fsdp x cp ({ranks})"
        raise ArgumentError("ep", layout.ep, rule)


def _view(root: DeviceMesh, sizes: dict[str, int], used: tuple[str, ...] = ()) -> DeviceMesh:
    """The root's ranks by the dimensions in `sizes` that are above 1 or named in `used`."""
    kept = {name: size for name, size in sizes.items() if size > 1 or name in used}
    if not kept:
        return root
    return root._unflatten(0, tuple(kept.values()), tuple(kept))
