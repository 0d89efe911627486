"""Measures one training step of a model that transformers built: FLOPs and memory, forward, backward and update."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from counting.counts import StepFlops
from counting.measurements.optimizer import with_gradients
from counting.measurements.parameters import buffer_bytes, trained_tensors, updated_parameters
from counting.measurements.step import profile_of, run_passes
from counting.measurements.update import in_groups, states_of_modules, with_update
from counting.setup import Setup
from counting.step.profile import StepProfile
from counting.via_transformers.attention import ONE_KERNEL, attention_in_one_kernel, attention_known_as
from counting.via_transformers.count import names_of_kinds
from counting.via_transformers.discover import BUILT_DTYPE, Discovered, discover
from counting.via_transformers.reading.decoders import Decoder, one_line
from counting.via_transformers.run import LONGEST_REASON, Recorded, run
from counting.via_transformers.step.layers import LayersToRun, layers_to_run
from counting.via_transformers.step.to_run import BuiltToRun
from counting.via_transformers.structure import matrix_weights
from torch_models.errors import UserError
from torch_models.modules.recompute import run as run_again


class BuiltStep(NamedTuple):
    """A measured step; `by_recipe` has the states of formats that torch does not run, or None."""

    flops: StepFlops
    profile: StepProfile
    by_recipe: StepProfile | None
    runs: tuple[tuple[int, int], ...]  # equal layers in a row: index of the kind in the profile, and number
    untrained: tuple[str, ...]  # names of parameters, of the layers that ran, to which backward passes no gradient


def measure_step(decoder: Decoder, found: Discovered, recorded: Recorded, setup: Setup) -> BuiltStep:
    """One step of the model; `setup` must be resolved. Call it inside `measuring`, with the model labelled.

    The model is built anew where the precision has activations of another dtype than it. Raises `UserError` if the step
    cannot be measured, if transformers' code raises an exception, or if the setup is not of this model.
    """
    dtype: torch.dtype = getattr(torch, setup.precision_recipe.activation_dtype)
    if dtype != BUILT_DTYPE:
        with _running_code_of_family():
            found, recorded = _rebuilt(decoder, found, recorded, dtype, setup)
    layers = layers_to_run(found, names_of_kinds(found), setup.recompute)
    if setup.recompute == "selective":
        _refuse_own_attention(found, recorded)
    model = BuiltToRun(found, recorded, layers, setup)
    with _recomputed_attention(setup), model.ready():
        try:
            with _running_code_of_family():
                passes = run_passes(model, setup)
            profile = profile_of(passes, _bytes_of_buffers(found.model, layers))
            return BuiltStep(passes.flops, *_with_update(profile, model, layers, setup))
        finally:
            for parameter in found.model.parameters():
                parameter.grad = None


@contextlib.contextmanager
def _running_code_of_family() -> Iterator[None]:
    """Context in which any exception becomes a `UserError`: a family's code may raise any, also in a backward pass."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(one_line(error, LONGEST_REASON)) from error


def _rebuilt(
    decoder: Decoder, found: Discovered, recorded: Recorded, dtype: torch.dtype, setup: Setup
) -> tuple[Discovered, Recorded]:
    """The same model in another dtype, labelled alike, and run once: then it has its caches."""
    other = discover(decoder, recorded.way.attention, dtype)
    for name, module in found.model.named_modules():
        other.model.get_submodule(name).component = module.component
    return other, run(other, recorded.way, setup.micro_batch)


def _refuse_own_attention(found: Discovered, recorded: Recorded) -> None:
    for group in found.groups:
        if recorded.in_one_kernel.isdisjoint(group.layer.modules()):
            raise UserError(
                f"recompute selective runs attention again, and that of {type(group.layer).__name__}"
                " is its own code: give full, per_op or none"
            )


@contextlib.contextmanager
def _recomputed_attention(setup: Setup) -> Iterator[None]:
    """Context in which attention kernels run again in backward, if the setup says so."""
    if setup.recompute != "selective":
        yield
        return

    def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Any:
        return run_again(partial(attention_in_one_kernel, module), query, key, value, *args, recompute=True, **options)

    with attention_known_as(ONE_KERNEL, attention):
        yield


def _bytes_of_buffers(model: nn.Module, layers: LayersToRun) -> int:
    """The bytes of all buffers of the whole model, of which `model` has one layer of each kind."""
    return buffer_bytes(model) + sum((each.number - 1) * buffer_bytes(each.layer) for each in layers.layers)


def _with_update(
    profile: StepProfile, model: BuiltToRun, layers: LayersToRun, setup: Setup
) -> tuple[StepProfile, StepProfile | None, tuple[tuple[int, int], ...], tuple[str, ...]]:
    """The fields of a `BuiltStep` after its FLOPs."""
    precision, optimizer = setup.precision_recipe, setup.optimizer_recipe
    modules = [each.layer for each in layers.layers]
    named = list(model.module.named_parameters())
    of_updated = zip(updated_parameters(model.module), trained_tensors(model.module), strict=True)
    trained = [(x, tensor) for x, tensor in of_updated if id(x) in model.trained]
    parameters, tensors = [x for x, _ in trained], [tensor for _, tensor in trained]
    frozen = [x for _, x in named if id(x) not in model.trained]
    of_layers = [list(module.parameters()) for module in modules]
    groups = in_groups(with_gradients(parameters, tensors, precision), frozen, of_layers)

    def by_recipe() -> StepProfile:
        return states_of_modules(modules, model.kinds, model.module, matrix_weights, precision, optimizer)

    measured, recipe = with_update(profile, groups, layers.runs, setup, by_recipe)
    untrained = tuple(name for name, x in named if id(x) not in model.trained)
    return measured, recipe, layers.runs, untrained
