"""A `Layout` applied to a model that trains.

    meshes = build_meshes(layout, "cuda")
    apply_layout(model, layout, meshes, param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

The model may be on the meta device, or on a real one with the same values on all ranks. Afterwards each rank has its
part of every parameter, as a DTensor that knows the whole, and the model is called as before.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from torch_models.errors import ArgumentError
from torch_models.layout import Layout
from torch_models.parallel.checks import check_context_parallel, check_expert_parallel, check_tensor_parallel
from torch_models.parallel.context import check_device_of_ring, divide_positions
from torch_models.parallel.experts import divide_experts
from torch_models.parallel.mesh import Meshes
from torch_models.parallel.sharded import shard
from torch_models.parallel.tensor import divide_tensors
from torch_models.spec import Kernels, LayerSpec, MixtureOfExpertsSpec
from torch_models.training.model import TrainingModel
from torch_models.training.stage import StageModel


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
    _check(model, layout, param_dtype, reduce_dtype)
    if meshes.cp is not None:
        check_device_of_ring(meshes.cp)
    if meshes.tp is not None:
        divide_tensors(model, layout, meshes.tp)
    if meshes.cp is not None:
        divide_positions(model, meshes.cp)
    if meshes.ep is not None:
        divide_experts(model, layout, meshes.ep)
    if meshes.data is not None:
        # Each layer would hold a copy of its own, if the tables had the dtype of the parameters that are not gathered.
        model.model.tables_dtype = param_dtype
        shard(model, layout, meshes, MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=reduce_dtype))


def _check(
    model: TrainingModel, layout: Layout, param_dtype: torch.dtype | None, reduce_dtype: torch.dtype | None
) -> None:
    """Raise `ArgumentError` for what cannot be divided, before anything is changed."""
    if not isinstance(model, TrainingModel):
        raise ArgumentError("model", type(model).__name__, "must be the result of build_training_model")
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise ArgumentError("model", model.spec.name, "is divided already: apply one layout to it, once")
    for name, dtype in (("param_dtype", param_dtype), ("reduce_dtype", reduce_dtype)):
        if dtype is not None and not layout.is_sharded:
            raise ArgumentError(name, str(dtype), "is for dp x fsdp > 1; with tp alone build the model in this dtype")
    layers = [cast(LayerSpec, layer.spec) for layer in model.model.layers]
    if layout.cp > 1:
        check_context_parallel(layers, _kernels(model), layout.cp)
    if layout.tp > 1:
        check_tensor_parallel(layers, model.spec.vocab_size, layout.tp)
    if layout.ep > 1 and not (isinstance(model, StageModel) and not _has_experts(layers)):
        check_expert_parallel(model.spec.name, layers, layout)
        reduced = reduce_dtype or param_dtype or model.model.dtype
        if layout.expert_fsdp == 1 and reduced not in (torch.float32, torch.bfloat16):
            # torch 2.13: foreach_reduce divides for one shard, and once more where it fears an overflow.
            rule = "must be torch.float32 or torch.bfloat16: torch would divide the gradients of experts twice"
            raise ArgumentError("reduce_dtype", str(reduced), rule)


def _has_experts(layers: Sequence[LayerSpec]) -> bool:
    return any(isinstance(layer.feed_forward, MixtureOfExpertsSpec) for layer in layers)


def _kernels(model: TrainingModel) -> Kernels:
    attention: Any = model.model.layers[0].self_attn
    return cast(Kernels, attention.kernels)
