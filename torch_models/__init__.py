"""Typed specs of models, read from a config.json, and the PyTorch modules built from them.

    from torch_models import build, load_checkpoint
    model = build("deepseek_v3", device="meta")
    model = load_checkpoint("a/folder/with/config.json/and/safetensors")

Each public name is imported from its module at first use. Importing this package or reading a config therefore imports
no torch; building or initialising a model, loading a checkpoint and what trains do.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch_models.builder import build, build_mtp, build_training_model
    from torch_models.checkpoints.load import load_checkpoint, load_mtp_checkpoint, load_training_model
    from torch_models.checkpoints.save import save_checkpoint
    from torch_models.errors import ArgumentError, CheckpointError, ConfigError, UserError
    from torch_models.fields.config import read_spec
    from torch_models.first_values import initialize
    from torch_models.modules.recompute import set_recompute
    from torch_models.spec import (
        ClampedMLPSpec,
        GatedMLPSpec,
        GroupedQueryAttentionSpec,
        IndexerSpec,
        LayerRun,
        LayerSpec,
        MixtureOfExpertsSpec,
        MLPSpec,
        ModelSpec,
        MultiHeadLatentAttentionSpec,
        RotarySpec,
        RouterSpec,
        TemperatureSpec,
    )
    from torch_models.training.batch import check_batch
    from torch_models.training.loss import loss_normalizer

__all__ = [
    "ArgumentError",
    "CheckpointError",
    "ClampedMLPSpec",
    "ConfigError",
    "GatedMLPSpec",
    "GroupedQueryAttentionSpec",
    "IndexerSpec",
    "LayerRun",
    "LayerSpec",
    "MLPSpec",
    "MixtureOfExpertsSpec",
    "ModelSpec",
    "MultiHeadLatentAttentionSpec",
    "RotarySpec",
    "RouterSpec",
    "TemperatureSpec",
    "UserError",
    "build",
    "build_mtp",
    "build_training_model",
    "check_batch",
    "initialize",
    "load_checkpoint",
    "load_mtp_checkpoint",
    "load_training_model",
    "loss_normalizer",
    "read_spec",
    "save_checkpoint",
    "set_recompute",
]

_HOMES = {
    "build": "builder",
    "build_mtp": "builder",
    "build_training_model": "builder",
    "check_batch": "training.batch",
    "initialize": "first_values",
    "load_checkpoint": "checkpoints.load",
    "load_mtp_checkpoint": "checkpoints.load",
    "load_training_model": "checkpoints.load",
    "loss_normalizer": "training.loss",
    "read_spec": "fields.config",
    "save_checkpoint": "checkpoints.save",
    "set_recompute": "modules.recompute",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name) or ("errors" if name.endswith("Error") else "spec")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
