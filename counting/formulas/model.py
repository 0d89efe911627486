"""The formulas' word on a whole model, in the same shape as the measurement's. Torch-free."""

import msgspec

from counting.counts import BATCH_SIZE, AttentionCore, Counts, LayerCounts, ModelCounts, MtpCounts
from counting.formulas import flops as analytic
from counting.formulas.memory.layer import layer_memory
from torch_models.spec import Kernels, LayerSpec, ModelSpec


def derive(spec: ModelSpec, sequence_length: int, kernels: Kernels) -> ModelCounts:
    """Parameters, FLOPs and bytes of `spec` by the closed-form formulas, for one sequence."""
    layers = tuple(_layer(layer, count, sequence_length, kernels) for layer, count in spec.layer_groups())
    in_layers = sum((layer.parameters * layer.count for layer in layers), Counts())
    run = (sequence_length, BATCH_SIZE)
    mtp_as_run = tuple(analytic.as_run(layer, kernels) for layer in spec.mtp_layers)
    mtp_flops = analytic.mtp_forward_flops(msgspec.structs.replace(spec, mtp_layers=mtp_as_run), *run)
    return ModelCounts(
        layers=layers,
        outside_parameters=analytic.parameters(spec) - in_layers,
        outside_flops=analytic.head_flops(spec, *run),
        outside_dispatched_flops=analytic.head_flops(spec, *run),
        mtp=MtpCounts(
            parameters=analytic.mtp_parameters(spec),
            linear_weights=sum(map(analytic.linear_weights, spec.mtp_layers)),
            router_correction_bias=sum(analytic.router_correction_bias(layer) for layer in spec.mtp_layers),
            forward_flops=mtp_flops,
            dispatched_flops=mtp_flops,
            attention_core=sum(
                (analytic.attention_core(layer.attention, *run) for layer in mtp_as_run), AttentionCore()
            ),
        ),
    )


def _layer(spec: LayerSpec, count: int, sequence_length: int, kernels: Kernels) -> LayerCounts:
    run = (sequence_length, BATCH_SIZE)
    visited = analytic.as_run(spec, kernels)
    flops = analytic.forward_flops(visited, *run)
    return LayerCounts(
        kind=spec.kind,
        count=count,
        parameters=analytic.parameters(spec),
        inactive_parameters=analytic.inactive_parameters(spec),
        linear_weights=analytic.linear_weights(spec),
        router_correction_bias=analytic.router_correction_bias(spec),
        forward_flops=flops,
        dispatched_flops=flops,
        attention_core=analytic.attention_core(visited.attention, *run),
        memory=layer_memory(spec, sequence_length, kernels, grad=True),
        memory_no_grad=layer_memory(spec, sequence_length, kernels, grad=False),
    )
