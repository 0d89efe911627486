"""Closed-form counts of a whole model as `ModelCounts`, the type that measurements return too. Torch-free.

They contain no peaks and no transients, which are simulated (formulas/memory/) and measured.
"""

import msgspec

from counting.counts import AttentionCore, LayerCounts, ModelCounts, MtpCounts, OutsideCounts
from counting.formulas.flops import (
    as_run,
    attention_core,
    forward_flops,
    head_flops,
    mtp_forward_flops,
    training_flops,
)
from counting.formulas.held import (
    boundary_bytes,
    embedding_held,
    forward_pass,
    layer_held,
    loss_held,
    weight_bytes,
)
from counting.formulas.parameters import (
    frozen_parameters,
    inactive_parameters,
    linear_weights,
    mtp_parameters,
    outside_parameters,
    parameters,
    router_correction_bias,
)
from counting.formulas.states import (
    buffer_bytes,
    input_bytes,
    layer_moments,
    layer_states,
    mtp_moments,
    outside_moments,
    outside_states,
)
from counting.setup import Setup
from counting.step.profile import LayerProfile, StepProfile
from torch_models.spec import LayerSpec, ModelSpec


def by_formula(spec: ModelSpec, setup: Setup, *, step: bool) -> ModelCounts:
    """Return the closed-form counts of `spec`: parameters, forward FLOPs, bytes and, with `step`, a training step.

    `setup` is resolved. Forward FLOPs and bytes are of one micro-batch.
    """
    assert setup.sequence_length is not None, "a resolved setup"
    run = (setup.sequence_length, setup.micro_batch_size)
    return ModelCounts(
        layers=tuple(_layer_counts(layer, count, setup) for layer, count in spec.layer_groups()),
        outside=OutsideCounts(
            parameters=outside_parameters(spec),
            moment_bytes=outside_moments(spec, setup),
            forward_flops=head_flops(spec, *run),
        ),
        mtp=_mtp_counts(spec, setup),
        training_flops=training_flops(spec, setup) if step else None,
        step_profile=_step_profile(spec, setup) if step else None,
    )


def _layer_counts(spec: LayerSpec, count: int, setup: Setup) -> LayerCounts:
    assert setup.sequence_length is not None
    run = (setup.sequence_length, setup.micro_batch_size)
    visited = as_run(spec, setup.kernels)
    return LayerCounts(
        kind=spec.kind,
        count=count,
        parameters=parameters(spec),
        inactive_parameters=inactive_parameters(spec),
        linear_weights=linear_weights(spec),
        router_correction_bias=router_correction_bias(spec),
        moment_bytes=layer_moments(spec, setup),
        frozen_parameters=frozen_parameters(spec),
        forward_flops=forward_flops(visited, *run),
        attention_core_flops=attention_core(visited.attention, *run),
        weight_bytes=weight_bytes(spec),
        boundary_bytes=boundary_bytes(spec, setup.tokens),
    )


def _mtp_counts(spec: ModelSpec, setup: Setup) -> MtpCounts:
    """Return counts of the multi-token-prediction layers, which are not in the main model, whether trained or not."""
    assert setup.sequence_length is not None
    run = (setup.sequence_length, setup.micro_batch_size)
    visited = tuple(as_run(layer, setup.kernels) for layer in spec.mtp_layers)
    return MtpCounts(
        parameters=mtp_parameters(spec),
        linear_weights=sum(map(linear_weights, spec.mtp_layers)),
        router_correction_bias=sum(map(router_correction_bias, spec.mtp_layers)),
        moment_bytes=mtp_moments(spec, setup),
        frozen_parameters=sum(map(frozen_parameters, spec.mtp_layers)),
        forward_flops=mtp_forward_flops(msgspec.structs.replace(spec, mtp_layers=visited), *run),
        attention_core_flops=sum((attention_core(layer.attention, *run) for layer in visited), AttentionCore()),
    )


def _step_profile(spec: ModelSpec, setup: Setup) -> StepProfile:
    """Return the profile with held bytes only; its stretches are None."""
    run = forward_pass(setup)
    return StepProfile(
        layers=tuple(
            LayerProfile(kind=layer.kind, count=count, states=layer_states(layer, setup), held=layer_held(layer, run))
            for layer, count in spec.layer_groups()
        ),
        embedding_held=embedding_held(spec, run),
        loss_held=loss_held(spec, setup),
        outside_states=outside_states(spec, setup),
        inputs=input_bytes(spec, setup),
        buffers=buffer_bytes(spec, setup),
    )
