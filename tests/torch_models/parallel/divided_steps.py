"""Steps of training of a model that a layout divides, on the batches of ecosystem/training_steps.py."""

from typing import Any

import torch
import torch.distributed as dist

from tests.torch_models.ecosystem.training_steps import STEPS, Trained, Way, batch, first_model, train_plain, undivided
from torch_models import loss_normalizer
from torch_models.layout import Layout
from torch_models.parallel.apply import apply_layout
from torch_models.parallel.mesh import build_meshes
from torch_models.parallel.sharded import set_gradient_synchronisation
from torch_models.parallel.tensor import loss_context


def train_divided(family: str, way: Way, fields: dict[str, Any]) -> Trained:
    """Train on this rank under the layout with `fields`; ranks of one tp group have the same batches."""
    layout = Layout(**{"dp": 1} | fields)
    model = first_model(family, way)
    apply_layout(model, layout, build_meshes(layout, way.device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses, gradients = [], {}
    for step in range(STEPS):
        micro_batches = [batch(step, dist.get_rank() // layout.tp, index) for index in range(way.micro_batches)]
        normalizer = loss_normalizer([labels for _, labels in micro_batches], mtp_layers=model.num_mtp_layers)
        total = torch.zeros(())
        for index, (token_ids, labels) in enumerate(micro_batches):
            set_gradient_synchronisation(model, layout, last=index == len(micro_batches) - 1)
            with loss_context(layout):
                loss = model(token_ids, labels, normalizer=normalizer)
                loss.backward()
            total += loss.detach()
        dist.all_reduce(total)
        losses.append(total / dist.get_world_size())
        if step == 0:
            gradients = {name: undivided(weight.grad) for name, weight in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
    return Trained(losses, gradients, {name: undivided(tensor) for name, tensor in model.state_dict().items()})
