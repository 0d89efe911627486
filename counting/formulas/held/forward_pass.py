"""What the terms of held bytes depend on, and what a norm holds."""

from typing import NamedTuple

from counting.setup import MicroBatch, Setup
from torch_models.spec import (
    Kernels,
    LayerSpec,
    ModelRecompute,
    ModelSpec,
)

BFLOAT16 = 2  # bytes of each of these formats
FP32 = 4
INT64 = 8
INT32 = 4


class ForwardPass(NamedTuple):
    """The part of a setup that the terms depend on."""

    micro_batch: MicroBatch  # B sequences of S tokens
    width: int  # w
    kernels: Kernels
    recompute: ModelRecompute

    def of_layer(self, spec: LayerSpec) -> "ForwardPass":
        """The same, with what is recomputed of this layer."""
        return self._replace(recompute=spec.recompute_in(self.recompute))

    @property
    def tokens(self) -> int:
        """T, of all sequences."""
        return self.micro_batch.tokens

    @property
    def norms_hold_input(self) -> bool:
        """Whether a norm holds its input itself: eager norms hold an fp32 copy if activations are not in fp32."""
        return self.kernels == "fused" or self.width == FP32


def forward_pass(setup: Setup) -> ForwardPass:
    """Return the `ForwardPass` of a training step; `setup` is resolved."""
    return ForwardPass(setup.micro_batch, setup.precision_recipe.activation_bytes, setup.kernels, setup.recompute)


def norm_held(rows: int, channels: int, run: ForwardPass, *, unit_offset: bool = False, has_weight: bool = True) -> int:
    """Return bytes that RMSNorm holds for `rows` rows of `channels` numbers each.

    - source: the input, or its fp32 copy, for the gradients of 1 / rms and of the product with 1 / rms;
    - inverse_rms: 1 / rms of each row, in fp32, for the gradient of the input;
    - normalised: eager only; the normalised rows before the weight multiplies them, for the weight's gradient, in fp32
      with `unit_offset`. A fused kernel computes them again, and without a weight they are the output;
    - factor: with `unit_offset`, the tensor 1 + weight, for the gradient of the rows.
    """
    source = (run.width if run.norms_hold_input else FP32) * rows * channels
    inverse_rms = FP32 * rows
    if run.kernels == "fused":
        factor = run.width * channels if unit_offset else 0
        return source + inverse_rms + factor
    if not has_weight:
        return source + inverse_rms
    normalised = (FP32 if unit_offset else run.width) * rows * channels
    factor = FP32 * channels if unit_offset else 0
    return source + inverse_rms + normalised + factor


def layer_norm_held(rows: int, channels: int, run: ForwardPass) -> int:
    """Return bytes that LayerNorm holds for `rows` rows of `channels` numbers each: torch's kernel in every profile.

    - source: the input, for the gradients of the input and of the weight;
    - mean, inverse_deviation: of each row, in fp32, from which backward computes the normalised rows again.

    Korthikanti et al. 2022 (arXiv 2205.05198, §4.1) count the input alone, 2 s b h for each of two norms; the two
    numbers of a row are left out there.
    """
    source = run.width * rows * channels
    mean = inverse_deviation = FP32 * rows
    return source + mean + inverse_deviation


def stream_norm_held(spec: LayerSpec | ModelSpec, rows: int, run: ForwardPass) -> int:
    """Return bytes that a norm of the residual stream holds, as a layer or a model has them, for `rows` tokens."""
    if spec.norm_type == "layer_norm":
        return layer_norm_held(rows, spec.hidden_size, run)
    return norm_held(rows, spec.hidden_size, run, unit_offset=spec.norm_unit_offset)
