"""The work of a step on one device: the measured step once more, with a recorder."""

import torch

from counting.measurements.meta_device import measuring
from counting.measurements.probe import Probe, build_probe
from counting.measurements.step import ProbeToRun, run_passes
from counting.measurements.update import runs_of_probe, states_by_recipe, trained_groups
from counting.measurements.work.assembly import (
    MICRO_BATCHES_SHOWN,
    layers_of_micro_batch,
    passes_of_micro_batch,
    step_work,
    works_of,
)
from counting.measurements.work.recorder import Recorder
from counting.measurements.work.styles import layers_run_as
from counting.measurements.work.update import clipping_ops, recipe_op, record_sums, update_ops, zeroing_ops
from counting.recipes import states_measurable
from counting.setup import Setup
from counting.work import OWN_STYLE, LayerStyle, Op, StepWork, StretchWork
from torch_models.spec import ModelSpec


def work_of_device(spec: ModelSpec, setup: Setup, style: LayerStyle = OWN_STYLE) -> StepWork:
    """What one device does in a step of `spec`; `setup` must be resolved."""
    assert setup.micro_batches is not None, "a resolved setup"
    with measuring(), layers_run_as(style):
        dtype = getattr(torch, setup.precision_recipe.activation_dtype)
        probe = build_probe(spec, setup.kernels, dtype, mtp=bool(setup.mtp))
        recorder = Recorder()
        hooks = record_sums(probe.model, recorder) if setup.precision_recipe.gradients_apart else []
        run = run_passes(ProbeToRun(probe, setup), setup, recorder)
        for hook in hooks:
            hook.remove()
        stretches, layers = recorder.take(), layers_of_micro_batch(len(probe.groups))
        works = works_of(stretches, [{}] * len(stretches), layers * len(run.passes), setup.execution)
        of_one = len(layers)
        found = [passes_of_micro_batch(works[:of_one]), passes_of_micro_batch(works[-of_one:])]
        first, later = ("first", found[0]), ("later", found[-1])
        optimizer = StretchWork(ops=_update(probe, setup))
    shown = min(setup.micro_batches, MICRO_BATCHES_SHOWN)
    return step_work(runs_of_probe(probe), [first, *[later] * (shown - 1)], setup.micro_batches, optimizer)


def _update(probe: Probe, setup: Setup) -> tuple[Op, ...]:
    precision, optimizer = setup.precision_recipe, setup.optimizer_recipe
    trained = trained_groups(probe, precision)
    counts = [count for _, count in probe.groups]
    groups = [(trained.outside, 1), *zip(trained.layers, counts, strict=True)]
    clipping = clipping_ops(groups) if setup.clip_gradients else ()
    zeroing = zeroing_ops(groups) if setup.zero_gradients == "in_place" or precision.gradients_apart else ()
    if states_measurable(precision, optimizer):
        return (*clipping, *update_ops(groups, precision, optimizer), *zeroing)
    profile = states_by_recipe(probe, precision, optimizer)
    assert profile.outside_states is not None
    states = profile.outside_states
    for layer in profile.layers:
        assert layer.states is not None
        states += layer.states * layer.count
    return (*clipping, recipe_op(states, precision, optimizer), *zeroing)
