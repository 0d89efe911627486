"""What a step or a layer may be set to by name: kernels, recomputation, activations, places of norms. Torch-free."""

from typing import Literal, get_args

from torch_models.errors import ArgumentError

Kernels = Literal["fused", "eager"]
# The part of a layer's forward pass that backward computes again; of a model, that of every layer, or a number N: every
# N-th layer is computed again as a whole, and the others not at all.
Recompute = Literal["none", "selective", "per_op", "full"]
ModelRecompute = Recompute | int
Activation = Literal["silu", "gelu", "gelu_pytorch_tanh"]
NormPlacement = Literal["before", "after", "around"]  # of a block, within its residual connection
NormType = Literal["rms_norm", "layer_norm"]  # of the residual stream


def check_kernels(kernels: str) -> None:
    """Raise `ArgumentError` if `kernels` is not a kernel profile."""
    if kernels not in get_args(Kernels):
        raise ArgumentError("kernels", kernels, f"must be one of {', '.join(get_args(Kernels))}")
