"""The modules' word on a whole model: one layer of each distinct kind is built on the meta device and measured."""

import threading
from collections import Counter

import msgspec
import torch
from torch import Tensor, nn

from counting.counts import AttentionCore, Counts, LayerCounts, ModelCounts, MtpCounts
from counting.measurements.live_bytes import layer_memory
from counting.measurements.meta_device import cuda_kernels_on_meta, without_compiler
from counting.measurements.parameters import (
    inactive_parameters,
    linear_weights,
    parameter_counts,
    router_correction_bias,
)
from counting.measurements.trace import dispatched_flops, traced_flops
from torch_models.builder import build_model, build_mtp_layers
from torch_models.modules.decoder import CausalLM
from torch_models.modules.layers import RotaryTables, rotary_tables
from torch_models.spec import Kernels, ModelSpec, RotarySpec

# Grouped products have a 16-bit meta kernel for bfloat16 alone; float16 has the same bytes and the same FLOPs.
MEASURED_DTYPE = torch.bfloat16

ONE_AT_A_TIME = threading.Lock()  # held by whoever measures: hooks and kernels are the whole process's


def measure(spec: ModelSpec, sequence_length: int, kernels: Kernels) -> ModelCounts:
    """Parameters, FLOPs and bytes of the modules that `spec` builds, for one sequence.

    The time it takes depends on the number of distinct layers, not on the number of layers. One measurement runs at
    a time: tracing is a state of the process.
    """
    with ONE_AT_A_TIME, torch.inference_mode(False), without_compiler():
        return _Measurement(spec, sequence_length, kernels).model()


class _Measurement:
    """A model with one layer of each kind, and the inputs that its parts take."""

    def __init__(self, spec: ModelSpec, sequence_length: int, kernels: Kernels) -> None:
        self.spec = spec
        self.sequence_length = sequence_length
        self.groups = spec.layer_groups()
        one_of_each = msgspec.structs.replace(spec, layers=tuple(layer for layer, _ in self.groups))
        self.module: CausalLM = build_model(one_of_each, device="meta", dtype=MEASURED_DTYPE, kernels=kernels)
        self.mtp_groups = Counter(spec.mtp_layers)
        one_of_each = msgspec.structs.replace(spec, mtp_layers=tuple(self.mtp_groups))
        self.mtp_layers = build_mtp_layers(one_of_each, device="meta", dtype=MEASURED_DTYPE, kernels=kernels)

    def model(self) -> ModelCounts:
        layers = self.module.model.layers
        in_layers = sum((parameter_counts(layer) for layer in layers), Counts())
        head, stream = self.module.lm_head, (self._stream(),)
        head_flops, head_dispatched = traced_flops(head, stream)[0], dispatched_flops(head, stream)
        return ModelCounts(
            layers=tuple(
                self._layer(layer, spec.kind, count, self._rotary(spec.attention.rotary))
                for layer, (spec, count) in zip(layers, self.groups, strict=True)
            ),
            outside_parameters=parameter_counts(self.module) - in_layers,
            outside_flops=head_flops,
            outside_dispatched_flops=head_dispatched,
            mtp=self._mtp(head_flops, head_dispatched),
        )

    def _layer(self, layer: nn.Module, kind: str, count: int, rotary: RotaryTables) -> LayerCounts:
        inputs = (self._stream(), rotary)
        flops, core = traced_flops(layer, inputs)
        with cuda_kernels_on_meta():
            return LayerCounts(
                kind=kind,
                count=count,
                parameters=parameter_counts(layer),
                inactive_parameters=inactive_parameters(layer),
                linear_weights=linear_weights(layer),
                router_correction_bias=router_correction_bias(layer),
                forward_flops=flops,
                dispatched_flops=dispatched_flops(layer, inputs),
                attention_core=core,
                memory=layer_memory(layer, *inputs, grad=True),
                memory_no_grad=layer_memory(layer, *inputs, grad=False),
            )

    def _mtp(self, head_flops: Counts, head_dispatched: Counts) -> MtpCounts:
        parameters, flops, dispatched, core = Counts(), Counts(), Counts(), AttentionCore()
        weights = biases = 0
        for layer, (spec, count) in zip(self.mtp_layers, self.mtp_groups.items(), strict=True):
            inputs = (self._stream(), self._stream(), self._rotary(spec.attention.rotary))
            parameters += parameter_counts(layer) * count
            weights += linear_weights(layer) * count
            biases += router_correction_bias(layer) * count
            traced, traced_core = traced_flops(layer, inputs)
            flops += (traced + head_flops) * count
            core += traced_core * count
            with cuda_kernels_on_meta():
                dispatched += (dispatched_flops(layer, inputs) + head_dispatched) * count
        return MtpCounts(
            parameters=parameters,
            linear_weights=weights,
            router_correction_bias=biases,
            forward_flops=flops,
            dispatched_flops=dispatched,
            attention_core=core,
        )

    def _stream(self) -> Tensor:
        """Hidden states of one sequence, (1, S, D)."""
        return torch.empty(1, self.sequence_length, self.spec.hidden_size, device="meta", dtype=MEASURED_DTYPE)

    def _rotary(self, spec: RotarySpec) -> RotaryTables:
        return rotary_tables(spec, self.sequence_length, torch.device("meta"), MEASURED_DTYPE)
