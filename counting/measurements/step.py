"""Measured memory of one training step: real modules run forward and backward on the meta device, storages followed.

One layer of each kind is built, whatever their number; `counting.step_memory` extends what is measured here to the
whole model.
"""

from itertools import islice
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from counting.measurements.live_bytes import LiveBytes
from counting.measurements.meta_device import cuda_kernels_on_meta, without_compiler
from counting.measurements.optimizer import Update
from counting.measurements.parameters import linear_weights, parameter_counts, router_correction_bias
from counting.measurements.probe import ONE_AT_A_TIME
from counting.step_profile import (
    Cut,
    LayerProfile,
    ModelStates,
    StepOptions,
    StepProfile,
    Stretch,
    model_states,
    stretches_between,
)
from torch_models.builder import build_model, build_mtp_layers
from torch_models.modules.recompute import set_recompute
from torch_models.spec import ModelSpec
from torch_models.training.loss import training_loss

DTYPES = {2: torch.bfloat16, 4: torch.float32}  # by bytes


def measure_step(spec: ModelSpec, options: StepOptions) -> StepProfile:
    """The profile of a step over one sequence; one measurement runs at a time."""
    with ONE_AT_A_TIME, torch.inference_mode(False), torch.enable_grad(), without_compiler():
        return _Step(spec, options).profile()


class _Step:
    """A model with one layer of each kind, run once forward and backward, with a cut between its stretches."""

    def __init__(self, spec: ModelSpec, options: StepOptions) -> None:
        self.spec = spec
        self.options = options
        self.groups = spec.layer_groups()
        small = msgspec.structs.replace(
            spec,
            layers=tuple(layer for layer, _ in self.groups),
            mtp_layers=spec.mtp_layers if options.mtp else (),
        )
        how: dict[str, Any] = {
            "device": "meta",
            "dtype": DTYPES[options.precision.activation_bytes],
            "kernels": options.kernels,
        }
        self.model = build_model(small, **how)
        self.mtp_layers = build_mtp_layers(small, **how)
        for part in (self.model, self.mtp_layers):
            set_recompute(part, options.recompute)
        self.parameters = [p for part in (self.model, self.mtp_layers) for p in part.parameters()]
        self.cuts: list[Cut] = []

    def profile(self) -> StepProfile:
        layers = self.model.model.layers
        stretches = self._run()
        count = len(self.groups)
        embedding_forward, *forward = stretches[: count + 1]
        loss, *backward, embedding_backward = stretches[count + 1 :]
        inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
        outside = [parameter for parameter in self.parameters if id(parameter) not in inside]
        if self.options.precision.measurable:
            states = self._states([*(list(layer.parameters()) for layer in layers), outside])
        else:
            states = self._states_by_recipe(
                [*((parameter_counts(layer).total, linear_weights(layer)) for layer in layers)],
                (sum(parameter.numel() for parameter in outside), linear_weights(self.mtp_layers)),
            )
        biases = [router_correction_bias(layer) * n for layer, (_, n) in zip(layers, self.groups, strict=True)]
        biases.append(router_correction_bias(self.mtp_layers))
        return StepProfile(
            embedding_forward=embedding_forward,
            layers=tuple(
                LayerProfile(
                    kind=layer_spec.kind,
                    count=number,
                    states=of_layer,
                    forward=forth,
                    backward=back,
                )
                for (layer_spec, number), of_layer, forth, back in zip(
                    self.groups, states[:-1], forward, reversed(backward), strict=True
                )
            ),
            loss=loss,
            embedding_backward=embedding_backward,
            outside_states=states[-1],
            optimizer_step=self.optimizer_step,
            inputs=self.inputs,
            buffers=torch.float32.itemsize * sum(biases),
        )

    def _run(self) -> list[Stretch]:
        """Forward and backward, cut before and after each layer."""
        token_ids, labels = (
            torch.empty(1, self.options.sequence_length, dtype=torch.long, device="meta") for _ in range(2)
        )
        decoder = self.model.model
        tables = decoder.rotary_tables(token_ids)
        inputs = [token_ids, labels, *(table for pair in tables.values() for table in pair)]
        existing = [*self.parameters, *self.model.buffers(), *self.mtp_layers.buffers(), *inputs]
        with cuda_kernels_on_meta(), LiveBytes(existing) as self.tracker:
            self._cut()
            hooks = [module.register_forward_pre_hook(self._cut_before) for module in (*decoder.layers, decoder.norm)]
            if self.options.precision.gradients_apart:
                hooks += [p.register_post_accumulate_grad_hook(_let_go) for p in self.parameters]
            loss = training_loss(
                self.model, self.mtp_layers, token_ids, labels, tables=tables, loss_chunk=self.options.loss_chunk
            )
            loss.backward()
            self._cut()
        for hook in hooks:
            hook.remove()
        self.inputs = sum(tensor.untyped_storage().nbytes() for tensor in inputs)
        gradients = {self.tracker.serial(p.grad) for p in self.parameters if p.grad is not None}
        return stretches_between(self.cuts, gradients)

    def _states(self, groups: list[list[nn.Parameter]]) -> list[ModelStates]:
        """Of each group of parameters, and `optimizer_step`, from steps of the optimiser."""
        precision, optimizer = self.options.precision, self.options.optimizer
        parameters = [parameter for group in groups for parameter in group]
        update = Update(parameters, precision, optimizer)
        self.optimizer_step = update.peak
        rows = iter(zip(parameters, update.gradients, update.masters, update.moments, strict=True))
        states = []
        for group in groups:
            weights, gradients, masters, moments = zip(*islice(rows, len(group)), strict=True)
            states.append(
                ModelStates(
                    weights=sum(weight.untyped_storage().nbytes() for weight in weights),
                    gradients=sum(gradients),
                    masters=sum(masters),
                    moments=sum(moments),
                )
            )
        return states

    def _states_by_recipe(self, in_layers: list[tuple[int, int]], outside: tuple[int, int]) -> list[ModelStates]:
        """Of formats in which torch neither multiplies nor updates on the meta device: by measured parameters alone."""
        self.optimizer_step = 0
        precision, optimizer = self.options.precision, self.options.optimizer
        return [model_states(*counts, precision, optimizer) for counts in (*in_layers, outside)]

    def _cut_before(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Here on the way forward, and on the way back when the gradient of what goes in is complete."""
        self._cut()
        args[0].register_hook(self._cut_backward)

    def _cut_backward(self, gradient: Tensor) -> None:
        self._cut()

    def _cut(self) -> None:
        self.cuts.append(Cut(self.tracker.at_peak, self.tracker.alive()))
        self.tracker.watch()


def _let_go(parameter: Tensor) -> None:
    """What adding a gradient to a buffer of another format leaves of it."""
    parameter.grad = None
