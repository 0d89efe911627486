"""All measurements of one model: its modules are built, counted, traced and run."""

import torch
from msgspec import structs

from counting.counts import Counts, LayerCounts, ModelCounts, MtpCounts, OutsideCounts
from counting.measurements.forward import run_layers
from counting.measurements.meta_device import measuring
from counting.measurements.parameters import (
    count_parameters,
    frozen_parameters,
    inactive_parameters,
    linear_weights,
    moments_by_recipe,
    router_correction_bias,
)
from counting.measurements.probe import MEASURED_DTYPE, Probe, build_probe
from counting.measurements.step import run_step
from counting.measurements.trace import trace_model
from counting.setup import Setup
from torch_models.spec import ModelSpec


def measure(spec: ModelSpec, setup: Setup, *, step: bool) -> dict[str, ModelCounts]:
    """The witnesses of the modules that `spec` builds, by name. `setup` must be resolved.

    ``numel`` has the parameters and, by recipe from their shapes, the optimiser's moments, ``trace`` (fvcore's) the
    forward FLOPs, and ``dispatch`` (torch's) the forward FLOPs and the layers' memory. With `step`, ``dispatch`` also
    has the training step, and ``recipe``, which is present only for what torch does not run, has the model states of
    that step.
    """
    with measuring():
        mtp = bool(setup.mtp)
        probe = build_probe(spec, setup.kernels, mtp=mtp)
        witnesses = {
            "numel": count_model(probe, setup),
            "trace": trace_model(probe, setup.micro_batch),
            "dispatch": run_layers(probe, setup.micro_batch),
        }
        if step:
            dtype = getattr(torch, setup.precision_recipe.activation_dtype)
            if dtype != MEASURED_DTYPE:
                probe = build_probe(spec, setup.kernels, dtype, mtp=mtp)
            shown = run_step(probe, setup)
            witnesses["dispatch"] = structs.replace(
                witnesses["dispatch"], training_flops=shown.flops, step_profile=shown.memory
            )
            if shown.by_recipe is not None:
                layers = tuple(LayerCounts(kind=layer.kind, count=layer.count) for layer in shown.by_recipe.layers)
                witnesses["recipe"] = ModelCounts(layers=layers, step_profile=shown.by_recipe)
        return witnesses


def count_model(probe: Probe, setup: Setup) -> ModelCounts:
    """Parameters by `numel`, and the bytes of the optimiser's moments for tensors of these shapes."""
    recipe = (setup.precision_recipe, setup.optimizer_recipe)
    in_layers, moments_in_layers = Counts(), 0  # of the layers in `probe.model`
    layers = []
    for layer, (spec, count) in zip(probe.layers, probe.groups, strict=True):
        parameters = count_parameters(layer)
        moments = moments_by_recipe(layer, *recipe)
        in_layers += parameters
        moments_in_layers += moments
        layers.append(
            LayerCounts(
                kind=spec.kind,
                count=count,
                parameters=parameters,
                inactive_parameters=inactive_parameters(layer),
                linear_weights=linear_weights(layer),
                router_correction_bias=router_correction_bias(layer),
                moment_bytes=moments,
                frozen_parameters=frozen_parameters(layer),
            )
        )
    mtp_parameters, mtp_moments = count_parameters(probe.mtp_layers), moments_by_recipe(probe.mtp_layers, *recipe)
    if probe.model.num_mtp_layers:
        in_layers += mtp_parameters
        moments_in_layers += mtp_moments
    return ModelCounts(
        layers=tuple(layers),
        outside=OutsideCounts(
            parameters=count_parameters(probe.model) - in_layers,
            moment_bytes=moments_by_recipe(probe.model, *recipe) - moments_in_layers,
        ),
        mtp=MtpCounts(
            parameters=mtp_parameters,
            linear_weights=linear_weights(probe.mtp_layers),
            router_correction_bias=router_correction_bias(probe.mtp_layers),
            moment_bytes=mtp_moments,
            frozen_parameters=frozen_parameters(probe.mtp_layers),
        ),
    )
