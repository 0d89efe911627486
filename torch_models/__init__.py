"""What a model is: typed specs, read from a config.json, and the real modules that they build.

    from torch_models import build
    model = build("deepseek_v3_config.json", device="meta")
    model = load_checkpoint("a/folder/with/config.json/and/safetensors")

Importing this package, or reading a config, does not import torch; building and loading do.
"""

import os
from typing import TYPE_CHECKING

from torch_models.errors import CheckpointError, ConfigError, UserError
from torch_models.fields.config import read_spec
from torch_models.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from torch_models.modules.decoder import CausalLM
    from torch_models.spec import Kernels

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ModelSpec",
    "UserError",
    "build",
    "build_mtp",
    "load_checkpoint",
    "load_mtp_checkpoint",
    "read_spec",
]


def build(
    config: str | os.PathLike[str] | ModelSpec,
    *,
    device: "torch.device | str" = "cpu",
    dtype: "torch.dtype | None" = None,
    kernels: "Kernels" = "fused",
) -> "CausalLM":
    """The main model of `config` (a path, a name in configs/, or a spec): token ids (B, S) -> logits (B, S, V).

    `dtype` is fp32 unless given. Parameter names and shapes are Hugging Face's, experts stacked as in
    transformers 5. On the meta device the model takes no memory, whatever its size.
    """
    from torch_models.builder import build_model

    return build_model(_spec(config), device=device, dtype=dtype, kernels=kernels)


def build_mtp(
    config: str | os.PathLike[str] | ModelSpec,
    *,
    device: "torch.device | str" = "cpu",
    dtype: "torch.dtype | None" = None,
    kernels: "Kernels" = "fused",
) -> "nn.ModuleList":
    """The multi-token-prediction layers of `config`, which stand beside the main model; empty where it has none."""
    from torch_models.builder import build_mtp_layers

    return build_mtp_layers(_spec(config), device=device, dtype=dtype, kernels=kernels)


def load_checkpoint(
    folder: str | os.PathLike[str],
    *,
    device: "torch.device | str" = "cpu",
    dtype: "torch.dtype | None" = None,
    kernels: "Kernels" = "fused",
) -> "CausalLM":
    """The main model of a Hugging Face checkpoint folder, with its weights: token ids (B, S) -> logits (B, S, V).

    The folder holds config.json and model.safetensors, or shards and their index. `dtype` is fp32 unless given,
    whatever the files are stored in. Tensors are read one at a time; what does not fit the config is a
    `CheckpointError`. Needs the extra `checkpoints`.
    """
    from torch_models.checkpoints.load import load_checkpoint

    return load_checkpoint(folder, device=device, dtype=dtype, kernels=kernels)


def load_mtp_checkpoint(
    folder: str | os.PathLike[str],
    *,
    device: "torch.device | str" = "cpu",
    dtype: "torch.dtype | None" = None,
    kernels: "Kernels" = "fused",
) -> "nn.ModuleList":
    """The multi-token-prediction layers of a checkpoint folder; empty where its config has none."""
    from torch_models.checkpoints.load import load_mtp_checkpoint

    return load_mtp_checkpoint(folder, device=device, dtype=dtype, kernels=kernels)


def _spec(config: str | os.PathLike[str] | ModelSpec) -> ModelSpec:
    return config if isinstance(config, ModelSpec) else read_spec(config)
