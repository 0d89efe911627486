"""Steps of training of a model whose stages are on several ranks, against the plain module on all batches."""

from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor

from tests.torch_models.ecosystem.training_steps import Way, batch, fields_of, undivided
from tests.torch_models.parallel.divided_steps import Fields, clip, layout_of
from tests.worlds import World
from torch_models import build_training_model, initialize, loss_normalizer, set_recompute
from torch_models.builder import build_stage_model
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout
from torch_models.parallel.apply import apply_layout
from torch_models.parallel.mesh import build_meshes
from torch_models.parallel.pipeline import build_pipeline, pipeline_rank_of
from torch_models.spec import ModelSpec
from torch_models.stages import stages_of

LAYERS, STEPS, SEED = 5, 2, 3
Tensors = dict[str, Tensor]


def spec_of(family: str, way: Way) -> ModelSpec:
    """A model with as many layers as four stages need."""
    return spec_from_fields(fields_of(family, way) | {"num_hidden_layers": LAYERS}, family)


def assert_trains_as_undivided(world: World, family: str, fields: Fields, way: Way, tolerance: float) -> None:
    """Every stage has the gradients and weights of the undivided model, and the last one its losses."""
    layout = layout_of(fields)
    losses, gradients, weights = train_plain(family, way, layout.data_ranks)
    seen: set[str] = set()
    for of_losses, *tensors in world.run(train_stages, family, fields, way):
        assert of_losses is None or torch.allclose(of_losses, losses, rtol=tolerance, atol=0)
        for found, expected in zip(tensors, (gradients, weights), strict=True):
            for name, tensor in found.items():
                scale = expected[name].abs().max()
                assert (tensor - expected[name]).abs().max() <= tolerance * scale, name
        seen |= set(tensors[0])
    assert seen == set(gradients)


def _batches(way: Way, step: int, rank: int) -> list[tuple[Tensor, Tensor]]:
    return [batch(step, rank, index) for index in range(way.micro_batches)]


@cache
def train_plain(family: str, way: Way, ranks: int) -> tuple[Tensor, Tensors, Tensors]:
    """The losses, the gradients of the first step, and the weights after the last, in this process."""
    model = build_training_model(spec_of(family, way), dtype=way.dtype, kernels=way.kernels)
    initialize(model, seed=SEED)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses, gradients = [], {}
    for step in range(STEPS):
        of_step = [each for rank in range(ranks) for each in _batches(way, step, rank)]
        normalizer = loss_normalizer([labels for _, labels in of_step], mtp_layers=model.num_mtp_layers)
        total = torch.zeros((), dtype=way.dtype)
        for token_ids, labels in of_step:
            loss = model(token_ids, labels, normalizer=normalizer)
            loss.backward()
            total += loss.detach()
        losses.append(total)
        clip([model], None, way)
        if step == 0:
            gradients = {name: _gradient(weight) for name, weight in model.named_parameters() if weight.requires_grad}
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack(losses), gradients, dict(model.named_parameters())


def train_stages(family: str, fields: Fields, way: Way) -> tuple[Tensor | None, Tensors, Tensors]:
    """The same of the stages of this rank; the losses are the means over the ranks that have the last stage."""
    layout: Layout = layout_of(fields)
    meshes = build_meshes(layout, "cpu")
    spec = spec_of(family, way)
    mtp_layers = len(spec.mtp_layers)
    modules = []
    for number in layout.stages_of_rank(pipeline_rank_of(meshes)):
        module = build_stage_model(stages_of(spec, layout)[number], dtype=way.dtype, kernels=way.kernels)
        initialize(module, seed=SEED)
        set_recompute(module, way.recompute)
        apply_layout(module, layout, meshes)
        modules.append(module)
    micro_batch = tuple(batch(0, 0)[0].shape)
    pipeline = build_pipeline(modules, layout, meshes, micro_batch=micro_batch, micro_batches=way.micro_batches)
    parameters = [parameter for module in modules for parameter in module.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    losses: list[Tensor | None] = []
    gradients: Tensors = {}
    for step in range(STEPS):
        of_step = _batches(way, step, dist.get_rank() % layout.ranks_of_stage // layout.tp)
        normalizer = loss_normalizer([labels for _, labels in of_step], mtp_layers=mtp_layers)
        token_ids, labels = (torch.cat(each) for each in zip(*of_step, strict=True))
        loss = pipeline.step(token_ids, labels, normalizer=normalizer)
        losses.append(_mean(loss, layout, way))
        clip(modules, meshes, way)
        if step == 0:
            named = [each for module in modules for each in module.named_parameters()]
            gradients = {name: _gradient(weight) for name, weight in named if weight.requires_grad}
        optimizer.step()
        optimizer.zero_grad()
    weights = {name: undivided(weight) for module in modules for name, weight in module.named_parameters()}
    return (None if losses[0] is None else torch.stack(losses)), gradients, weights  # type: ignore[arg-type]


def _gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return undivided(weight.grad).clone()


def _mean(loss: Tensor | None, layout: Layout, way: Way) -> Tensor | None:
    """The mean over the ranks with the last stage, on each of them."""
    total = torch.zeros((), dtype=way.dtype) if loss is None else loss.clone()
    dist.all_reduce(total)
    return None if loss is None else total / layout.ranks_of_stage
