"""Steps of training of a model whose positions ranks divide, against the plain module on the same whole sequences.

The ranks are processes of gloo, and the kernels of attention those of `ring_kernels`. Both compute in fp32.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from counting.measurements.ranks.stand_ins import replaced
from tests.torch_models.ecosystem.comparison import assert_close
from tests.torch_models.ecosystem.training_steps import VOCABULARY, Trained, Way, first_model, undivided
from tests.torch_models.parallel.divided_steps import clip
from tests.torch_models.parallel.ring_kernels import kernels_on_the_cpu
from tests.worlds import World
from torch_models import loss_normalizer
from torch_models.layout import Layout
from torch_models.parallel import apply
from torch_models.parallel.context import batch_of_rank
from torch_models.parallel.mesh import Meshes, build_meshes
from torch_models.parallel.sharded import set_gradient_synchronisation
from torch_models.parallel.tensor import loss_context
from torch_models.training.batch import IGNORED
from torch_models.training.model import TrainingModel

TOLERANCE = 1e-5
STEPS = 2

Fields = dict[str, Any]  # of a layout


def assert_trains_as_undivided(world: World, family: str, length: int, fields: Fields, way: Way) -> None:
    """Every rank has the losses, gradients and weights of the undivided model on sequences of this length."""
    expected = train_undivided(family, length, fields, way)
    for found in world.run(train_divided, family, length, fields, way):
        assert_close(found, expected, TOLERANCE)


def train_divided(family: str, length: int, fields: Fields, way: Way) -> Trained:
    """Train on this rank. Ranks of one group of cp, and of tp, have the same sequences."""
    layout = Layout(**{"dp": 1} | fields)
    if way.device != "cpu":
        return _train_divided(family, length, layout, way)
    with kernels_on_the_cpu(), replaced(apply, "check_device_of_ring", lambda mesh: None):
        return _train_divided(family, length, layout, way)


def _train_divided(family: str, length: int, layout: Layout, way: Way) -> Trained:
    model, meshes = first_model(family, way), build_meshes(layout, way.device)
    apply.apply_layout(model, layout, meshes)
    data = dist.get_rank() // (layout.tp * layout.cp)
    return _take_steps(model, layout, meshes, way, length, [data])


def train_undivided(family: str, length: int, fields: Fields, way: Way) -> Trained:
    """Train the plain module on the sequences of all ranks."""
    layout = Layout(**{"dp": 1} | fields)
    return _take_steps(first_model(family, way), Layout(dp=1), Meshes(), way, length, range(layout.data_ranks))


def whole_batch(step: int, rank: int, index: int, length: int, device: str) -> tuple[Tensor, Tensor]:
    """Token ids and labels of two sequences, (2, S) each; some have no label."""
    generator = torch.Generator().manual_seed(100 * step + 10 * rank + index)
    tokens = torch.randint(VOCABULARY, (2, length + 1), generator=generator)
    labels = tokens[:, 1:].clone()
    labels[0, : 3 + 4 * rank + step] = IGNORED
    labels[1, -1 - rank :] = IGNORED
    return tokens[:, :-1].contiguous().to(device), labels.to(device)


def _take_steps(
    model: TrainingModel, layout: Layout, meshes: Meshes, way: Way, length: int, ranks: Iterable[int]
) -> Trained:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses: list[Tensor] = []
    gradients: dict[str, Tensor] = {}
    mtp_layers = model.num_mtp_layers
    for step in range(STEPS):
        batches = [
            whole_batch(step, rank, index, length, way.device) for rank in ranks for index in range(way.micro_batches)
        ]
        normalizer = loss_normalizer([labels for _, labels in batches], mtp_layers=mtp_layers, context_ranks=layout.cp)
        total = torch.zeros((), device=way.device)
        for index, (token_ids, labels) in enumerate(batches):
            set_gradient_synchronisation(model, layout, last=index == len(batches) - 1)
            own = batch_of_rank(token_ids, labels, meshes.cp, mtp_layers=mtp_layers)
            with loss_context(layout):
                loss = model(own.token_ids, own.labels, further=own.further, normalizer=normalizer)
                loss.backward()
            total += loss.detach()
        if dist.is_initialized():
            dist.all_reduce(total)
            total /= dist.get_world_size()
        losses.append(total.cpu())
        clip([model], meshes if dist.is_initialized() else None, way)
        if step == 0:
            gradients = {name: undivided(weight.grad).cpu() for name, weight in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
    return Trained(losses, gradients, {name: undivided(tensor).cpu() for name, tensor in model.state_dict().items()})
