"""What this rank holds, sends and computes: a model under a layout is built, run and updated."""

import torch

from counting.measurements.parameters import buffer_bytes
from counting.measurements.ranks.clipping import clipping_on_rank
from counting.measurements.ranks.collectives import axes_of
from counting.measurements.ranks.optimizer import RankUpdates, stored_precision, updated_numbers
from counting.measurements.ranks.shares import rank_shares
from counting.measurements.ranks.step import run_rank
from counting.ranks.profile import RankLayer, RankProfile, RankStretch
from counting.ranks.shallow import Shallow
from counting.setup import Setup
from counting.step.profile import Stretch
from torch_models.builder import build_model_with_loss
from torch_models.layout import Layout
from torch_models.modules.recompute import set_recompute
from torch_models.parallel.apply import apply_layout
from torch_models.parallel.mesh import Meshes, build_meshes
from torch_models.spec import ModelSpec
from torch_models.training.model import TrainingModel


def profile_of_rank(model: Shallow, setup: Setup, layout: Layout, device: torch.device) -> RankProfile:
    """Run a step of `model` as the rank that this process is; its numbers are this rank's.

    The process group has the ranks of `layout`. Call it inside `measuring`. Raises `UserError` for what cannot be
    divided so.
    """
    meshes = build_meshes(layout, device.type)
    modules = divided_model(model.spec, setup, layout, meshes, device)
    run = run_rank(modules, setup, layout, axes_of(meshes), model.counts())
    counts = model.counts()
    layers = list(modules.model.layers)[: len(counts)]
    in_layers = [list(layer.parameters()) for layer in layers]
    known = {id(parameter) for parameters in in_layers for parameter in parameters}
    outside = [parameter for parameter in modules.parameters() if id(parameter) not in known]
    updates = RankUpdates(setup, layout, device)
    groups = [(outside, 1), *zip(in_layers, counts, strict=True)]
    first, *others = run.micro_batches
    return RankProfile(
        layers=tuple(
            RankLayer(
                kind=spec.kind,
                count=count,
                parameters=updated_numbers(parameters),
                states=updates.states(parameters),
                held=held_bytes(forward.memory),
            )
            for spec, count, parameters, forward in zip(
                model.spec.layers, counts, in_layers, first.forward, strict=True
            )
        ),
        outside_parameters=updated_numbers(outside),
        outside_states=updates.states(outside),
        inputs=run.inputs,
        buffers=sum(buffer_bytes(layer) * count for layer, count in zip(layers, counts, strict=True))
        + sum(map(buffer_bytes, modules.model.mtp_layers)),
        first_micro_batch=first,
        middle_micro_batch=others[0] if len(others) == 2 else None,
        last_micro_batch=others[-1] if others else None,
        gradient_clipping=clipping_on_rank(groups, (), setup, layout, meshes) if setup.clip_gradients else None,
        optimizer_step=RankStretch(memory=Stretch(peak=updates.peak(groups), net=0)),
        flops=run.flops,
        shares=rank_shares(
            [(parameter, times) for parameters, times in groups for parameter in parameters], layout, updates
        ),
        context_rank=0 if meshes.cp is None else meshes.cp.get_local_rank(),
    )


def held_bytes(forward: Stretch) -> int:
    """What a layer's forward pass keeps for backward, beside what `fully_shard` keeps."""
    return forward.net - forward.gathered - forward.communication


def divided_model(spec: ModelSpec, setup: Setup, layout: Layout, meshes: Meshes, device: torch.device) -> TrainingModel:
    """The modules of `spec`, this rank's parts of them."""
    stored = getattr(torch, stored_precision(setup, layout).activation_dtype)
    modules = build_model_with_loss(
        spec,
        device=device,
        dtype=stored,
        kernels=setup.kernels,
        mtp=bool(setup.mtp),
        loss_chunk=setup.loss_chunk,
    )
    apply_to(modules, setup, layout, meshes)
    return modules


def apply_to(modules: TrainingModel, setup: Setup, layout: Layout, meshes: Meshes) -> None:
    """Divide `modules` as `layout` says, with the recomputation and the precision of `setup`."""
    set_recompute(modules, setup.recompute)
    stored = getattr(torch, stored_precision(setup, layout).activation_dtype)
    computed = getattr(torch, setup.precision_recipe.activation_dtype)
    mixed = stored != computed
    apply_layout(
        modules,
        layout,
        meshes,
        param_dtype=computed if mixed else None,
        reduce_dtype=stored if mixed else None,
    )
