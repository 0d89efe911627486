"""What a model is: typed specs, read from a config.json, and the real modules that they build.

    from torch_models import build
    model = build("deepseek_v3_config.json", device="meta")

Importing this package, or reading a config, does not import torch; building does.
"""

import os
from typing import TYPE_CHECKING

from torch_models.config import read_spec
from torch_models.errors import ConfigError, UserError
from torch_models.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from torch_models.decoder import CausalLM
    from torch_models.layers import Kernels

__all__ = ["ConfigError", "ModelSpec", "UserError", "build", "build_mtp", "read_spec"]


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


def _spec(config: str | os.PathLike[str] | ModelSpec) -> ModelSpec:
    return config if isinstance(config, ModelSpec) else read_spec(config)
