"""Specs into modules: the one place where device, dtype and first values are decided."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from torch_models.errors import ArgumentError
from torch_models.fields.config import Source, read_spec
from torch_models.modules.decoder import CausalLM, MultiTokenPredictionLayer
from torch_models.modules.layers import RMSNorm
from torch_models.spec import Kernels, ModelSpec, check_kernels

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_placement(device: torch.device | str, dtype: torch.dtype | None) -> None:
    """Refuse a device that is not here, and a dtype in which no model can be built, with what may be given instead.

    `dtype` is one of `DTYPES`, or None for fp32. Raises `UserError`.
    """
    if dtype not in (None, *DTYPES):
        raise ArgumentError("dtype", str(dtype), f"must be one of {', '.join(map(str, DTYPES))}")
    try:
        if torch.device(device).type not in ("cpu", "meta"):
            torch.empty(0, device=device)
    except (AssertionError, RuntimeError, TypeError):  # AssertionError: torch was built without the device
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        here = f"cpu, meta or {found.type} (0 to {torch.accelerator.device_count() - 1})" if found else "cpu or meta"
        raise ArgumentError("device", str(device), f"is not here; must be {here}") from None


def build(
    config: Source | ModelSpec,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    kernels: Kernels = "fused",
) -> CausalLM:
    """The main model of `config`: token ids (B, S) -> logits (B, S, V).

    `config` is a path, a name in configs/, a mapping of a config's fields, or a spec. `dtype` is fp32 unless given.
    Parameter names and shapes are Hugging Face's, experts stacked as in transformers 5. On the meta device the model
    takes no memory, whatever its size. Raises `UserError` for a config, kernels, a device or a dtype that cannot be.
    """
    return build_model(_spec(config), device=device, dtype=dtype, kernels=kernels)


def build_mtp(
    config: Source | ModelSpec,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    kernels: Kernels = "fused",
) -> nn.ModuleList:
    """The multi-token-prediction layers of `config`, which stand beside the main model; empty where it has none.

    All else is as for `build`.
    """
    return build_mtp_layers(_spec(config), device=device, dtype=dtype, kernels=kernels)


def _spec(config: Source | ModelSpec) -> ModelSpec:
    return config if isinstance(config, ModelSpec) else read_spec(config)


def build_model(
    spec: ModelSpec,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    kernels: Kernels = "fused",
    initializer_range: float | None = 0.02,
) -> CausalLM:
    """The main model of `spec`, in fp32 unless `dtype` is given; on the meta device it has shapes and no memory.

    Where `initializer_range` is None the weights are whatever the memory held, for a checkpoint to overwrite.
    Raises `UserError` for kernels, a device or a dtype that cannot be.
    """
    check_kernels(kernels)
    check_placement(device, dtype)
    with creating(device, dtype or torch.float32):
        model = CausalLM(spec, kernels)
    if initializer_range is not None:
        initialize(model, initializer_range)
    return model


def build_mtp_layers(
    spec: ModelSpec,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    kernels: Kernels = "fused",
    initializer_range: float | None = 0.02,
) -> nn.ModuleList:
    """The multi-token-prediction layers of `spec`, as many as its config has; they are no part of the main model.

    `initializer_range` is as for `build_model`.
    """
    check_kernels(kernels)
    check_placement(device, dtype)
    with creating(device, dtype or torch.float32):
        layers = nn.ModuleList(MultiTokenPredictionLayer(layer, kernels) for layer in spec.mtp_layers)
    if initializer_range is not None:
        initialize(layers, initializer_range)
    return layers


@torch.no_grad()
def initialize(module: nn.Module, initializer_range: float) -> None:
    """Draw every weight matrix from N(0, initializer_range²); norms start at one, biases at zero."""
    for owner in module.modules():
        if isinstance(owner, RMSNorm):
            continue
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.is_meta:
                return
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=initializer_range)


@contextlib.contextmanager
def creating(device: torch.device | str, dtype: torch.dtype) -> Iterator[None]:
    """New tensors go to `device` as `dtype`; the default dtype is restored afterwards."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(previous)
