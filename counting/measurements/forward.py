"""Measured forward passes of single layers: FLOPs by dispatch, and peak memory."""

import torch
from torch import nn

from counting.counts import Counts, LayerCounts, ModelCounts, MtpCounts, OutsideCounts
from counting.measurements.dispatch import Attribution, FlopCounter, owners_in
from counting.measurements.live_bytes import LiveBytes, layer_memory
from counting.measurements.probe import Probe
from counting.setup import MicroBatch
from torch_models.spec import LayerSpec


def run_layers(probe: Probe, batch: MicroBatch) -> ModelCounts:
    """Forward FLOPs and layer memory of one micro-batch.

    Each layer runs twice: without gradients, to count FLOPs and measure memory, and with gradients, to measure memory.
    """
    head_flops = dispatched_flops(probe.model.lm_head, probe.head_inputs(batch))
    mtp_flops = Counts()
    for module, spec, count in probe.mtp_kinds():
        inputs = (probe.stream(batch), probe.stream(batch), probe.rotary(spec, batch))
        mtp_flops += (dispatched_flops(module, inputs) + head_flops) * count
    return ModelCounts(
        layers=tuple(
            _run_layer(probe, layer, spec, count, batch)
            for layer, (spec, count) in zip(probe.layers, probe.groups, strict=True)
        ),
        outside=OutsideCounts(forward_flops=head_flops),
        mtp=MtpCounts(forward_flops=mtp_flops),
    )


def _run_layer(probe: Probe, layer: nn.Module, spec: LayerSpec, count: int, batch: MicroBatch) -> LayerCounts:
    stream, rotary = probe.stream(batch), probe.rotary(spec, batch)
    with Attribution() as attribution:
        counter = FlopCounter(attribution)
        no_grad = layer_memory(layer, stream, rotary, grad=False, observe=counter)
    with_grad = layer_memory(layer, stream, rotary, grad=True)
    return LayerCounts(
        kind=spec.kind,
        count=count,
        forward_flops=counter.of_pass("forward", owners_in(layer)),
        weight_bytes=with_grad.weights,
        boundary_bytes=with_grad.boundary,
        peak_memory_bytes=with_grad,
        peak_memory_no_grad_bytes=no_grad,
    )


def dispatched_flops(module: nn.Module, inputs: tuple[object, ...]) -> Counts:
    """FLOPs of `module(*inputs)` without gradients, by component."""
    with torch.no_grad(), Attribution() as attribution:
        counter = FlopCounter(attribution)
        with LiveBytes([], counter):
            module(*inputs)
    return counter.of_pass("forward", owners_in(module))
