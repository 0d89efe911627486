"""The formulas' word on a whole model, in the same shape as the measurement's. Torch-free."""

from counting import analytic
from counting.analytic_memory import layer_memory
from counting.counts import Counts, Kernels, LayerCounts, ModelCounts, MtpCounts
from torch_models.spec import LayerSpec, ModelSpec

BATCH_SIZE = 1


def derive(spec: ModelSpec, sequence_length: int, kernels: Kernels) -> ModelCounts:
    """Parameters, FLOPs and bytes of `spec` by the closed-form formulas, for one sequence."""
    run = (sequence_length, BATCH_SIZE)
    layers = tuple(_layer(layer, count, sequence_length, kernels) for layer, count in spec.layer_groups())
    in_layers = sum((layer.parameters * layer.count for layer in layers), Counts())
    flops_in_layers = sum((layer.forward_flops * layer.count for layer in layers), Counts())
    return ModelCounts(
        layers=layers,
        outside_parameters=analytic.parameters(spec) - in_layers,
        outside_flops=analytic.forward_flops(spec, *run) - flops_in_layers,
        mtp=MtpCounts(
            parameters=analytic.mtp_parameters(spec),
            router_correction_bias=sum(analytic.router_correction_bias(layer) for layer in spec.mtp_layers),
            forward_flops=analytic.mtp_forward_flops(spec, *run),
        ),
    )


def _layer(spec: LayerSpec, count: int, sequence_length: int, kernels: Kernels) -> LayerCounts:
    run = (sequence_length, BATCH_SIZE)
    flops = analytic.forward_flops(spec, *run)
    return LayerCounts(
        kind=spec.kind,
        count=count,
        parameters=analytic.parameters(spec),
        inactive_parameters=analytic.inactive_parameters(spec),
        router_correction_bias=analytic.router_correction_bias(spec),
        forward_flops=flops,
        dispatched_flops=flops,
        attention_core_flops=analytic.attention_core_flops(spec.attention, *run),
        memory=layer_memory(spec, sequence_length, kernels, grad=True),
        memory_no_grad=layer_memory(spec, sequence_length, kernels, grad=False),
    )
