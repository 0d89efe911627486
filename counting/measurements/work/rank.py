"""The work of a rank of a layout without a pipeline: the measured step of the shallow model, with a recorder."""

from collections.abc import Sequence

import torch
from torch import Tensor

from counting.measurements.ranks.clipping import clipping_on_rank
from counting.measurements.ranks.collectives import axes_of
from counting.measurements.ranks.optimizer import RankUpdates, adds_to_buffers, stored_precision
from counting.measurements.ranks.rank import divided_model
from counting.measurements.ranks.step import run_rank
from counting.measurements.work.assembly import passes_of_micro_batch, step_work, works_of
from counting.measurements.work.recorder import Recorder
from counting.measurements.work.records import summarise
from counting.measurements.work.update import record_sums, update_ops, zeroing_ops
from counting.ranks.shallow import Shallow
from counting.setup import Setup
from counting.work import StepWork, StretchWork
from torch_models.layout import Layout
from torch_models.parallel.mesh import Meshes, build_meshes

PLACES = {1: ("first",), 2: ("first", "last"), 3: ("first", "middle", "last")}


def work_of_rank(model: Shallow, setup: Setup, layout: Layout, device: torch.device) -> StepWork:
    """What the rank that this process is does in a step of `model`, whose layers stand for those of the whole one.

    The process group has the ranks of `layout`. Call it inside `measuring`. Raises `UserError` for what cannot be
    divided so.
    """
    assert setup.micro_batches is not None, "a resolved setup"
    meshes = build_meshes(layout, device.type)
    modules = divided_model(model.spec, setup, layout, meshes, device)
    recorder, counts = Recorder(), model.counts()
    hooks = record_sums(modules, recorder) if adds_to_buffers(setup, layout) else []
    run = run_rank(modules, setup, layout, axes_of(meshes), counts, recorder)
    for hook in hooks:
        hook.remove()
    phases = [phase for micro_batch in run.micro_batches for phase in micro_batch.phases()]
    traffics, in_layers = [stretch.traffic for stretch, _ in phases], [layer for _, layer in phases]
    works = works_of(recorder.take(), traffics, in_layers, setup.execution)
    of_one = len(works) // len(run.micro_batches)
    passes = [passes_of_micro_batch(works[start : start + of_one]) for start in range(0, len(works), of_one)]
    layers = [list(layer.parameters()) for layer in list(modules.model.layers)[: len(counts)]]
    known = {id(parameter) for parameters in layers for parameter in parameters}
    outside = [parameter for parameter in modules.parameters() if id(parameter) not in known]
    groups = [(outside, 1), *zip(layers, counts, strict=True)]
    places = PLACES[len(passes)]
    return step_work(
        model.runs,
        list(zip(places, passes, strict=True)),
        setup.micro_batches,
        update_of_rank(groups, (), setup, layout, meshes, device),
    )


def update_of_rank(
    groups: Sequence[tuple[Sequence[Tensor], int]],
    copied: Sequence[Tensor],
    setup: Setup,
    layout: Layout,
    meshes: Meshes,
    device: torch.device,
) -> StretchWork:
    """Clipping and update of all parameters of a rank, `times` of each of the groups. Call it inside `measuring`.

    `copied` are those whose gradients another stage counts in the norm.
    """
    clipping = StretchWork()
    if setup.clip_gradients:
        recorder = Recorder()
        stretch = clipping_on_rank(groups, copied, setup, layout, meshes, recorder)
        clipping = StretchWork(ops=summarise(recorder.take()[0]), traffic=stretch.traffic)
    updates = RankUpdates(setup, layout, device)
    trained = [(updates.trained(parameters), times) for parameters, times in groups]
    ops = update_ops(trained, stored_precision(setup, layout), setup.optimizer_recipe)
    zeroing = zeroing_ops(trained) if adds_to_buffers(setup, layout) else ()
    return StretchWork(ops=(*clipping.ops, *ops, *zeroing), traffic=clipping.traffic)
