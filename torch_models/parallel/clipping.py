"""Gradient clipping under a layout: one norm over the gradients of all ranks (Pascanu et al. 2013, arXiv 1211.5063).

    total_norm = clip_gradients(model, meshes, max_norm=1.0)
    optimizer.step()

Torch's own functions do it: `get_total_norm` and `clip_grads_with_norm_`. What they leave to the caller is done as
torchtitan does it: the norm of DTensors is summed over the ranks of their mesh (`full_tensor`); experts that ranks of
ep divide have a mesh, and so a norm, of their own; stages of a pipeline add up their squares over the ranks of pp.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from torch_models.errors import ArgumentError
from torch_models.parallel.mesh import Meshes
from torch_models.training.stage import StageModel

NORM = 2.0


def clip_gradients(modules: nn.Module | Sequence[nn.Module], meshes: Meshes, max_norm: float) -> Tensor:
    """Scale the gradients of all ranks to a total norm of `max_norm` if it is larger; return what it was, a scalar.

    `modules` are all that this rank trains: the model, or the stages of a pipeline. `meshes` is the result of
    `build_meshes`; `Meshes()` is one device. Call it on every rank, after all micro-batches of a step. Raises
    `ArgumentError` for a `max_norm` that is not above 0, and for modules without gradients.
    """
    if isinstance(max_norm, bool) or not isinstance(max_norm, int | float) or not max_norm > 0:
        raise ArgumentError("max_norm", max_norm, "must be a number above 0")
    modules = [modules] if isinstance(modules, nn.Module) else list(modules)
    copies = {id(weight) for weight in copied_embeddings(modules)}
    counted, copied = list[Tensor](), list[Tensor]()
    for module in modules:
        for parameter in module.parameters():
            if parameter.grad is not None:
                (copied if id(parameter) in copies else counted).append(parameter)
    if not counted:
        raise ArgumentError("modules", f"{len(modules)} of them", "have no gradients: call it after backward")
    return scale_to_norm(counted, copied, meshes.pp, max_norm)


def copied_embeddings(modules: Iterable[nn.Module]) -> list[Tensor]:
    """The embeddings of last stages that first ones have too, with the same gradients; their norm counts once."""
    stages = [module for module in modules if isinstance(module, StageModel) and module.shares_embedding]
    return [stage.model.embed_tokens.weight for stage in stages if stage.stage.is_last]


@torch.no_grad()
def scale_to_norm(
    counted: Sequence[Tensor], copied: Sequence[Tensor], pp: DeviceMesh | None, max_norm: float
) -> Tensor:
    """`clip_gradients` of parameters: the total norm is that of the gradients of `counted`, and all are scaled."""
    total = _norm_of_stages(_norm_of_meshes(counted), pp)
    for parameters in _by_mesh([*counted, *copied]):
        clip_grads_with_norm_(parameters, max_norm, total, foreach=True)
    return total


def _norm_of_meshes(parameters: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients of the ranks of one stage: that of each mesh, and of these."""
    norms = [_norm_of_mesh(alike) for alike in _by_mesh(parameters)]
    if len(norms) == 1:
        return norms[0]
    experts, others = norms
    return (experts**NORM + others**NORM).pow_(1 / NORM)


def _norm_of_mesh(parameters: Sequence[Tensor]) -> Tensor:
    gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
    norm = get_total_norm(gradients, NORM, foreach=True)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _norm_of_stages(norm: Tensor, pp: DeviceMesh | None) -> Tensor:
    """The norm over all stages; without a pipeline it is `norm`."""
    if pp is None:
        return norm
    norm.pow_(NORM)
    dist.all_reduce(norm, group=pp.get_group())
    return norm.pow_(1 / NORM)


def _by_mesh(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """Experts on ranks of ep, then all others, each if there are any: torch's functions take DTensors of one mesh."""
    experts = [parameter for parameter in parameters if _is_expert(parameter)]
    others = [parameter for parameter in parameters if not _is_expert(parameter)]
    return [alike for alike in (experts, others) if alike]


def _is_expert(parameter: Tensor) -> bool:
    return isinstance(parameter, DTensor) and "ep" in (parameter.device_mesh.mesh_dim_names or ())
