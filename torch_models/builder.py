"""Builds modules from specs. Device and dtype are set only here; first values are those of first_values.py."""

import contextlib
import math
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import nn

from torch_models.errors import ArgumentError
from torch_models.fields.config import Source, read_spec
from torch_models.first_values import check_seed, holds_values, initialize, set_initializer_range
from torch_models.modules.decoder import MultiTokenPredictionLayer
from torch_models.modules.language_model import CausalLM
from torch_models.spec import Kernels, ModelSpec, check_kernels
from torch_models.stages import Stage
from torch_models.training.model import MTP_WEIGHT, TrainingModel
from torch_models.training.stage import StageModel

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_placement(device: torch.device | str, dtype: torch.dtype | None) -> None:
    """Raise `UserError` for a device that this machine lacks or a dtype outside `DTYPES`; None stands for fp32.

    The message lists the devices or dtypes that are allowed.
    """
    if dtype not in (None, *DTYPES):
        raise ArgumentError("dtype", str(dtype), f"must be one of {', '.join(map(str, DTYPES))}")
    try:
        if torch.device(device).type not in ("cpu", "meta"):
            torch.empty(0, device=device)
    except (AssertionError, RuntimeError, TypeError):  # AssertionError: torch was built without the device
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        here = f"cpu, meta or {found.type} (0 to {torch.accelerator.device_count() - 1})" if found else "cpu or meta"
        raise ArgumentError("device", str(device), f"is not available here; must be {here}") from None


def build(
    config: Source | ModelSpec,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    kernels: Kernels = "fused",
    seed: int | None = None,
) -> CausalLM:
    """Return the main model of `config`, randomly initialised: token ids (B, S) -> logits (B, S, V).

    `config` is a path, a folder with a config.json, a name in configs/, a mapping of config fields, or a spec. `dtype`
    defaults to fp32. Parameter names and shapes are those of Hugging Face, with experts stacked as in transformers 5.
    `seed` is that of `initialize`. On the meta device the parameters use no memory and have no values. Raises
    `UserError` for an invalid config, kernel profile, device, dtype or seed.
    """
    return _with_first_values(build_model(_spec(config), device=device, dtype=dtype, kernels=kernels), seed)


def build_training_model(
    config: Source | ModelSpec,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    kernels: Kernels = "fused",
    mtp: bool = True,
    loss_chunk: int | None = None,
    mtp_weight: float = MTP_WEIGHT,
    seed: int | None = None,
) -> TrainingModel:
    """Return the model of `config` to train: token ids (B, S), labels (B, S) -> the loss.

    With `mtp` it has the config's multi-token-prediction layers, whose losses are added with the weight `mtp_weight`.
    With `loss_chunk`, the logits of at most that many tokens are in memory at a time. Other arguments and errors are as
    in `build`; the names of parameters too, and those of the multi-token-prediction layers go on from the main
    model's.
    """
    model = build_model_with_loss(
        _spec(config),
        device=device,
        dtype=dtype,
        kernels=kernels,
        mtp=mtp,
        loss_chunk=loss_chunk,
        mtp_weight=mtp_weight,
    )
    return _with_first_values(model, seed)


def build_mtp(
    config: Source | ModelSpec,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    kernels: Kernels = "fused",
    seed: int | None = None,
) -> nn.ModuleList:
    """Return the multi-token-prediction layers of `config`, which the main model does not contain.

    The list is empty if the config has none. Arguments and errors are as in `build`.
    """
    layers = build_mtp_layers(_spec(config), device=device, dtype=dtype, kernels=kernels)
    return _with_first_values(layers, seed)


M = TypeVar("M", bound=nn.Module)


def _with_first_values(module: M, seed: int | None) -> M:
    check_seed(seed)
    if all(map(holds_values, module.parameters())):
        initialize(module, seed=seed)
    return module


def _spec(config: Source | ModelSpec) -> ModelSpec:
    return config if isinstance(config, ModelSpec) else read_spec(config)


def build_model(
    spec: ModelSpec,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    kernels: Kernels = "fused",
) -> CausalLM:
    """Return the main model of `spec`; `dtype` defaults to fp32. On the meta device parameters use no memory.

    No first values are set: all parameters except those of norms hold memory as it was, to be overwritten from a
    checkpoint or by `initialize`. Raises `UserError` for an invalid kernel profile, device or dtype.
    """
    check_kernels(kernels)
    check_placement(device, dtype)
    with creating(device, dtype or torch.float32):
        return CausalLM(spec, kernels)


def build_model_with_loss(
    spec: ModelSpec,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    kernels: Kernels = "fused",
    mtp: bool = True,
    loss_chunk: int | None = None,
    mtp_weight: float = MTP_WEIGHT,
) -> TrainingModel:
    """Return the model of `spec` to train; parameters and errors are as in `build_model`."""
    check_kernels(kernels)
    check_placement(device, dtype)
    _check_loss(mtp, loss_chunk, mtp_weight)
    with creating(device, dtype or torch.float32):
        return TrainingModel(spec, kernels, mtp=mtp, loss_chunk=loss_chunk, mtp_weight=mtp_weight)


def build_stage_model(
    stage: Stage,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    kernels: Kernels = "fused",
    mtp: bool = True,
    loss_chunk: int | None = None,
    mtp_weight: float = MTP_WEIGHT,
) -> StageModel:
    """Return one stage of a model to train; parameters and errors are as in `build_model`.

    `initialize` gives its parameters the values that it gives those of the undivided model.
    """
    check_kernels(kernels)
    check_placement(device, dtype)
    _check_loss(mtp, loss_chunk, mtp_weight)
    with creating(device, dtype or torch.float32):
        return StageModel(stage, kernels, mtp=mtp, loss_chunk=loss_chunk, mtp_weight=mtp_weight)


def _check_loss(mtp: bool, loss_chunk: int | None, mtp_weight: float) -> None:
    if not isinstance(mtp, bool):
        raise ArgumentError("mtp", mtp, "must be True or False")
    if loss_chunk is not None and (not isinstance(loss_chunk, int) or isinstance(loss_chunk, bool) or loss_chunk < 1):
        raise ArgumentError("loss_chunk", loss_chunk, "must be a whole number of tokens, at least 1, or None")
    is_number = isinstance(mtp_weight, int | float) and not isinstance(mtp_weight, bool)
    if not is_number or not 0 <= mtp_weight < math.inf:
        raise ArgumentError("mtp_weight", mtp_weight, "must be a finite number, at least 0")


def build_mtp_layers(
    spec: ModelSpec,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    kernels: Kernels = "fused",
) -> nn.ModuleList:
    """Return the multi-token-prediction layers of `spec`; the list is empty if it has none.

    Parameters and errors are as in `build_model`.
    """
    check_kernels(kernels)
    check_placement(device, dtype)
    with creating(device, dtype or torch.float32):
        layers = nn.ModuleList(MultiTokenPredictionLayer(layer, kernels) for layer in spec.mtp_layers)
    set_initializer_range(layers, spec.initializer_range)
    return layers


@contextlib.contextmanager
def creating(device: torch.device | str, dtype: torch.dtype) -> Iterator[None]:
    """Create new tensors on `device` in `dtype` within this context; restore the default dtype afterwards."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(previous)
