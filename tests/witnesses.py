"""What the witnesses say, for tests that hold one against another or look at what they agree on."""

from typing import Any

from counting.counts import Counts, ModelCounts
from counting.formulas.flops import forward_flops, head_flops
from counting.formulas.memory import simulate
from counting.formulas.model import by_formula
from counting.measurements.model import measure
from counting.reconcile import reconcile
from counting.setup import Setup, resolve
from counting.step.memory import StepMemory, step_memory
from torch_models.recomputed_layers import with_recompute
from torch_models.spec import ModelSpec


def setup_of(spec: ModelSpec, **options: Any) -> Setup:
    """A resolved setup of 24 tokens, unless `options` say otherwise."""
    return resolve(Setup(**{"sequence_length": 24} | options), spec)


def at_most(sequence_length: int, spec: ModelSpec) -> int:
    """The sequence length, or the longest for which the model has positions."""
    return min(sequence_length, spec.learned_positions or sequence_length)


def measured(spec: ModelSpec, *, step: bool = True, **options: Any) -> ModelCounts:
    """What the measurements agree on."""
    setup = setup_of(spec, **options)
    return reconcile(spec.name, measure(with_recompute(spec, setup.recompute), setup, step=step))[0]


def derived(spec: ModelSpec, *, step: bool = True, **options: Any) -> ModelCounts:
    """What formulas and simulation agree on."""
    setup = setup_of(spec, **options)
    spec = with_recompute(spec, setup.recompute)
    said = {"formula": by_formula(spec, setup, step=step), "simulation": simulate(spec, setup, step=step)}
    return reconcile(spec.name, said)[0]


def agreed(spec: ModelSpec, *, step: bool = True, **options: Any) -> ModelCounts:
    """What all of them agree on; raises `DisagreementError`."""
    setup = setup_of(spec, **options)
    spec = with_recompute(spec, setup.recompute)
    witnesses = measure(spec, setup, step=step)
    witnesses["formula"] = by_formula(spec, setup, step=step)
    witnesses["simulation"] = simulate(spec, setup, step=step)
    return reconcile(spec.name, witnesses)[0]


def forward_of(spec: ModelSpec, sequence_length: int, batch_size: int) -> Counts:
    """FLOPs of the main model's forward pass by formula, every layer added up."""
    run = (sequence_length, batch_size)
    return sum((forward_flops(layer, *run) for layer in spec.layers), head_flops(spec, *run))


def memory_of(spec: ModelSpec, counts: ModelCounts, **options: Any) -> StepMemory:
    """The step's memory that `counts` come to in the whole model."""
    assert counts.step_profile is not None
    setup = setup_of(spec, **options)
    return step_memory(with_recompute(spec, setup.recompute), setup, counts.step_profile)
