"""A `Layout` applied to a model that trains.

    meshes = build_meshes(layout, "cuda")
    apply_layout(model, layout, meshes, param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

The model may be on the meta device, or on a real one with the same values on all ranks. Afterwards each rank has its
part of every parameter, as a DTensor that knows the whole, and the model is called as before.
"""

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy

from torch_models.errors import ArgumentError
from torch_models.layout import Layout
from torch_models.parallel.experts import divide_experts
from torch_models.parallel.mesh import Meshes
from torch_models.parallel.sharded import shard
from torch_models.parallel.tensor import divide_tensors
from torch_models.training.model import TrainingModel


def apply_layout(
    model: TrainingModel,
    layout: Layout,
    meshes: Meshes,
    *,
    param_dtype: torch.dtype | None = None,
    reduce_dtype: torch.dtype | None = None,
) -> None:
    """Divide `model` over the ranks of `meshes`, the result of `build_meshes` for the same resolved layout.

    Where `fully_shard` is applied, it gathers parameters in `param_dtype` and reduces gradients in `reduce_dtype`; None
    stands for the dtype of the parameters, and of the gradients. Build the optimiser afterwards, with the parameters
    that the model then has. Raises `UserError` for a model that cannot be divided so.
    """
    if not isinstance(model, TrainingModel):
        raise ArgumentError("model", type(model).__name__, "must be the result of build_training_model")
    if meshes.tp is not None:
        divide_tensors(model, layout, meshes.tp)
    if meshes.ep is not None:
        divide_experts(model, layout, meshes.ep)
    if layout.is_sharded:
        # Each layer would hold a copy of its own, if the tables had the dtype of the parameters that are not gathered.
        model.model.tables_dtype = param_dtype
        shard(model, layout, meshes, MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=reduce_dtype))
    elif param_dtype is not None or reduce_dtype is not None:
        raise ArgumentError("param_dtype", str(param_dtype or reduce_dtype), "needs dp x fsdp > 1: nothing is gathered")
