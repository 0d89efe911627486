"""Steps of training of a model that a layout divides, against the plain module on the batches of all ranks.

Both compute in fp64, so that what is left between them is the order of sums. Routers, and norms of eager kernels,
compute in fp32 in any case.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from tests.torch_models.ecosystem.comparison import assert_close
from tests.torch_models.ecosystem.training_steps import Trained, Way, batch, first_model, undivided
from tests.worlds import World
from torch_models import loss_normalizer
from torch_models.layout import Layout
from torch_models.parallel.apply import apply_layout
from torch_models.parallel.clipping import clip_gradients
from torch_models.parallel.mesh import Meshes, build_meshes
from torch_models.parallel.sharded import set_gradient_synchronisation
from torch_models.parallel.tensor import loss_context
from torch_models.training.model import TrainingModel

IN_FP64, IN_FP32 = Way(dtype=torch.float64), Way()
STEPS = 2
TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6}
TOLERANCE_OF_PARTS_IN_FP32 = 1e-6

Fields = dict[str, Any]  # of a layout


def assert_trains_as_undivided(
    world: World, family: str, fields: Fields, way: Way = IN_FP64, optimizer: Literal["sgd", "adamw"] = "sgd"
) -> None:
    """Every rank has the losses, gradients and weights of the undivided model."""
    layout = layout_of(fields)
    undivided_model, data = _undivided(family, fields, way), range(layout.data_ranks)
    expected = _take_steps(undivided_model, layout_of({}), None, way, data, optimizer)
    in_fp32 = way.kernels == "eager" or any("mlp.experts" in name for name in expected.weights)
    for found in world.run(train_divided, family, fields, way, optimizer):
        assert_close(found, expected, max(TOLERANCE[way.dtype], TOLERANCE_OF_PARTS_IN_FP32 if in_fp32 else 0))


def _undivided(family: str, fields: Fields, way: Way) -> TrainingModel:
    """The model of a family; with tp, its experts are as wide as it must be, a multiple of 8 on each of four ranks."""
    return first_model(family, replace(way, expert_width=32) if "tp" in fields else way)


def layout_of(fields: Fields) -> Layout:
    return Layout(**{"dp": 1} | fields)


def divided_model(family: str, fields: Fields, way: Way = IN_FP64) -> TrainingModel:
    """The model of a family, divided over the ranks of this world."""
    return _divided_model(family, layout_of(fields), fields, way)[0]


def _divided_model(family: str, layout: Layout, fields: Fields, way: Way) -> tuple[TrainingModel, Meshes]:
    model, meshes = _undivided(family, fields, way), build_meshes(layout, "cpu")
    precision = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if way.mixed_precision else {}
    apply_layout(model, layout, meshes, **precision)
    return model, meshes


def train_divided(family: str, fields: Fields, way: Way, optimizer: Literal["sgd", "adamw"]) -> Trained:
    """Train on this rank. Ranks of one tp group have the same batches."""
    layout = layout_of(fields)
    model, meshes = _divided_model(family, layout, fields, way)
    return _take_steps(model, layout, meshes, way, [dist.get_rank() // layout.tp], optimizer)


def _take_steps(
    model: TrainingModel,
    layout: Layout,
    meshes: Meshes | None,
    way: Way,
    ranks: Iterable[int],
    optimizer_name: Literal["sgd", "adamw"],
) -> Trained:
    """Take steps on the micro-batches of these ranks, one after the other."""
    optimizer: torch.optim.Optimizer
    if optimizer_name == "adamw":
        # With a small eps the first update is the sign of the gradient, and that of zero is a matter of rounding.
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, eps=1e-3, fused=True)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses: list[torch.Tensor] = []
    gradients: dict[str, torch.Tensor] = {}
    for step in range(STEPS):
        micro_batches = [batch(step, rank, index) for rank in ranks for index in range(way.micro_batches)]
        normalizer = loss_normalizer([labels for _, labels in micro_batches], mtp_layers=model.num_mtp_layers)
        total = torch.zeros((), dtype=way.dtype)
        for index, (token_ids, labels) in enumerate(micro_batches):
            set_gradient_synchronisation(model, layout, last=index == len(micro_batches) - 1)
            with loss_context(layout):
                loss = model(token_ids, labels, normalizer=normalizer)
                loss.backward()
            total += loss.detach()
        losses.append(_mean_over_ranks(total))
        _assert_complete(model)
        clip([model], meshes, way)
        if step == 0:
            gradients = {
                name: undivided(weight.grad) for name, weight in model.named_parameters() if weight.requires_grad
            }
        optimizer.step()
        optimizer.zero_grad()
    return Trained(losses, gradients, {name: undivided(tensor) for name, tensor in model.state_dict().items()})


def clip(modules: Sequence[nn.Module], meshes: Meshes | None, way: Way) -> None:
    """Clip the gradients if the way says so: those of one device by torch's function, those of ranks by ours.

    They are clipped indeed: the norm was above its maximum, which it has afterwards on one device.
    """
    if way.max_norm is None:
        return
    if meshes is not None:
        assert clip_gradients(modules, meshes, way.max_norm) > way.max_norm
        return
    (model,) = modules
    assert nn.utils.clip_grad_norm_(model.parameters(), way.max_norm) > way.max_norm
    squares = sum(parameter.grad.square().sum() for parameter in model.parameters() if parameter.grad is not None)
    torch.testing.assert_close(squares, torch.full_like(squares, way.max_norm**2), rtol=1e-4, atol=0)


def _assert_complete(model: TrainingModel) -> None:
    """No gradient waits for a sum over ranks that the optimiser does not make."""
    for name, weight in model.named_parameters():
        if isinstance(weight.grad, DTensor):
            assert weight.grad.placements == weight.placements, name


def _mean_over_ranks(loss: torch.Tensor) -> torch.Tensor:
    if dist.is_initialized():
        dist.all_reduce(loss)
        loss /= dist.get_world_size()
    return loss
