"""Steps of training of a model that a layout divides, against the plain module on the batches of all ranks.

Both compute in fp64, so that what is left between them is the order of sums. Routers, and norms of eager kernels,
compute in fp32 in any case.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from tests.torch_models.ecosystem.comparison import assert_close
from tests.torch_models.ecosystem.training_steps import Trained, Way, batch, first_model, undivided
from tests.worlds import World
from torch_models import loss_normalizer
from torch_models.layout import Layout
from torch_models.parallel.apply import apply_layout
from torch_models.parallel.mesh import build_meshes
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
    expected = _take_steps(first_model(family, way), layout_of({}), way, range(layout.data_ranks), optimizer)
    in_fp32 = way.kernels == "eager" or any("mlp.experts" in name for name in expected.weights)
    for found in world.run(train_divided, family, fields, way, optimizer):
        assert_close(found, expected, max(TOLERANCE[way.dtype], TOLERANCE_OF_PARTS_IN_FP32 if in_fp32 else 0))


def layout_of(fields: Fields) -> Layout:
    return Layout(**{"dp": 1} | fields)


def divided_model(family: str, fields: Fields, way: Way = IN_FP64) -> TrainingModel:
    """The model of a family, divided over the ranks of this world."""
    layout = layout_of(fields)
    model = first_model(family, way)
    precision = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if way.mixed_precision else {}
    apply_layout(model, layout, build_meshes(layout, "cpu"), **precision)
    return model


def train_divided(family: str, fields: Fields, way: Way, optimizer: Literal["sgd", "adamw"]) -> Trained:
    """Train on this rank. Ranks of one tp group have the same batches."""
    layout = layout_of(fields)
    return _take_steps(divided_model(family, fields, way), layout, way, [dist.get_rank() // layout.tp], optimizer)


def _take_steps(
    model: TrainingModel, layout: Layout, way: Way, ranks: Iterable[int], optimizer_name: Literal["sgd", "adamw"]
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
        if step == 0:
            gradients = {name: undivided(weight.grad) for name, weight in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
    return Trained(losses, gradients, {name: undivided(tensor) for name, tensor in model.state_dict().items()})


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
