"""Loads a Hugging Face checkpoint folder (config.json and safetensors) into the native modules.

Names, dtypes and shapes are checked against the config before memory is allocated for the model. Then the stored
tensors are copied one at a time, so that memory never contains a second copy of the model.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from torch_models.builder import build_model, build_model_with_loss, build_mtp_layers, check_placement
from torch_models.checkpoints.files import require_safetensors, stream
from torch_models.checkpoints.headers import StoredTensor, stored_tensors
from torch_models.checkpoints.places import (
    EMBEDDING,
    HEAD,
    LAYERS,
    TensorEntry,
    parts_of_checkpoint,
    places_in,
)
from torch_models.errors import ArgumentError, CheckpointError, ConfigError
from torch_models.fields.config import family, spec_from_fields
from torch_models.fields.file import CONFIG_FILE, read_config
from torch_models.fields.stored_names import Place, is_irrelevant
from torch_models.modules.language_model import CausalLM, LanguageModel
from torch_models.spec import Kernels, ModelSpec
from torch_models.training.model import MTP_WEIGHT, TrainingModel

# The dtypes that can be loaded. Any other dtype belongs to a quantised checkpoint.
DTYPES = ("BF16", "F16", "F32", "F64")

ModuleT = TypeVar("ModuleT", bound=nn.Module)
LanguageModelT = TypeVar("LanguageModelT", bound=LanguageModel)


class Checkpoint(NamedTuple):
    """A checkpoint folder, the spec of its config, and the header entries of its tensors by stored name."""

    folder: Path
    spec: ModelSpec
    stored: dict[str, StoredTensor]


def load_checkpoint(
    folder: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    kernels: Kernels = "fused",
) -> CausalLM:
    """Return the main model of a checkpoint folder with its weights: token ids (B, S) -> logits (B, S, V).

    `dtype` defaults to fp32, whatever dtype the files use; router correction biases are always fp32. Tensors of
    multi-token-prediction layers are ignored. On the meta device names, dtypes and shapes are checked, but no weight
    is read.

    Raises `UserError` (a `ValueError`): `ConfigError` for config.json, `CheckpointError` for the folder and its weight
    files, `ArgumentError` for an invalid kernel profile, device or dtype.
    """
    check_placement(device, dtype)
    checkpoint = _read(folder)
    spec = checkpoint.spec

    def build(device: torch.device | str) -> CausalLM:
        return build_model(spec, device=device, dtype=dtype, kernels=kernels)

    return _load_model(checkpoint, build, device, mtp=False)


def load_training_model(
    folder: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    kernels: Kernels = "fused",
    mtp: bool = True,
    loss_chunk: int | None = None,
    mtp_weight: float = MTP_WEIGHT,
) -> TrainingModel:
    """Return the model of a checkpoint folder to train: token ids (B, S), labels (B, S) -> the loss.

    With `mtp` it has the multi-token-prediction layers of the config, which must be stored. `loss_chunk` and
    `mtp_weight` are as in `build_training_model`, other arguments and errors as in `load_checkpoint`.
    """
    check_placement(device, dtype)
    checkpoint = _read(folder)
    spec = checkpoint.spec

    def build(device: torch.device | str) -> TrainingModel:
        return build_model_with_loss(
            spec,
            device=device,
            dtype=dtype,
            kernels=kernels,
            mtp=mtp,
            loss_chunk=loss_chunk,
            mtp_weight=mtp_weight,
        )

    if mtp:
        _check_mtp(checkpoint, build("meta"))
    return _load_model(checkpoint, build, device, mtp=mtp)


def load_mtp_checkpoint(
    folder: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    kernels: Kernels = "fused",
) -> nn.ModuleList:
    """Return the multi-token-prediction layers of a checkpoint folder with their weights.

    The list is empty if the config has none. Arguments and errors are as in `load_checkpoint`. The layers use the main
    model's embedding and head; copies of these in published checkpoints are ignored.
    """
    check_placement(device, dtype)
    checkpoint = _read(folder)
    spec = checkpoint.spec

    def build(device: torch.device | str) -> nn.ModuleList:
        return build_mtp_layers(spec, device=device, dtype=dtype, kernels=kernels)

    def tensors_of(layers: nn.ModuleList) -> dict[str, Tensor]:
        return {
            f"{LAYERS}{spec.num_layers + depth}.{name}": tensor
            for depth, layer in enumerate(layers)
            for name, tensor in layer.state_dict().items()
        }

    chosen = {name: checkpoint.stored[name] for name in parts_of_checkpoint(checkpoint.stored, spec).mtp}
    return _load(checkpoint, chosen, build, tensors_of, device)


def _load_model(
    checkpoint: Checkpoint,
    build: Callable[[torch.device | str], LanguageModelT],
    device: torch.device | str,
    *,
    mtp: bool,
) -> LanguageModelT:
    """Return the model that `build` creates, with the stored values, those of multi-token prediction if `mtp`."""
    stored = checkpoint.stored
    parts = parts_of_checkpoint(stored, checkpoint.spec)
    left_out = parts.left_out

    def tensors_of(model: LanguageModelT) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in model.state_dict().items() if name != left_out}

    chosen = [*parts.main, *parts.mtp] if mtp else parts.main
    model = _load(checkpoint, {name: stored[name] for name in chosen}, build, tensors_of, device)
    if left_out in stored:
        first = HEAD if left_out == EMBEDDING else EMBEDDING
        _check_copy(left_out, stored[left_out], first, model.lm_head.weight)
    return model


def _read(folder: str | os.PathLike[str]) -> Checkpoint:
    """Check the config of the folder and read the headers of its weight files."""
    if not isinstance(folder, str | os.PathLike):
        raise ArgumentError("folder", folder, "must be a path")
    path = Path(folder)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; nothing is downloaded")
    config = path / CONFIG_FILE
    if not config.is_file():
        raise CheckpointError(f"{config}: no such file")
    _, fields = read_config(config)
    try:
        if fields.get("quantization_config") is not None:
            rule = "quantised checkpoints are not supported; convert the weights to 16 bits and remove the field"
            raise ConfigError("quantization_config", fields["quantization_config"], rule)
        spec = spec_from_fields(fields, name=path.resolve().name)
    except ConfigError as error:
        raise error.in_file(str(config)) from None
    irrelevant = family(spec.model_type).Config.irrelevant_tensors
    stored = {name: tensor for name, tensor in stored_tensors(path).items() if not is_irrelevant(name, irrelevant)}
    for name, tensor in stored.items():
        if tensor.dtype not in DTYPES:
            raise CheckpointError(
                f"{tensor.file}: {name} is stored as {tensor.dtype}, and only {', '.join(DTYPES)} are read: "
                "quantised checkpoints are not supported"
            )
    return Checkpoint(path, spec, stored)


def _load(
    checkpoint: Checkpoint,
    stored: Mapping[str, StoredTensor],
    build: Callable[[torch.device | str], ModuleT],
    tensors_of: Callable[[ModuleT], dict[str, Tensor]],
    device: torch.device | str,
) -> ModuleT:
    """Return the module that `build` creates on `device`, with the values of the tensors in `stored`.

    `tensors_of` returns the module's tensors by their names in a checkpoint; they share the module's memory.
    """
    places = _places(checkpoint, stored, tensors_of(build("meta")))
    if torch.device(device).type == "meta":
        return build(device)
    for tensor in stored.values():
        require_safetensors(tensor.file)
        break
    module = build(device)
    tensors = tensors_of(module)
    for name, value in stream(stored):
        for place in places[name]:
            place.of(tensors[place.native]).copy_(place.within(value))
    return module


def _places(
    checkpoint: Checkpoint, stored: Mapping[str, StoredTensor], tensors: Mapping[str, Tensor]
) -> dict[str, tuple[Place, ...]]:
    """Return the places of each stored tensor in the model's `tensors`, which they must fill."""
    found = {name: TensorEntry(tensor.file.name, tensor.dtype, tensor.shape) for name, tensor in stored.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return places_in(shapes, found, checkpoint.spec.model_type, checkpoint.folder)


def _check_mtp(checkpoint: Checkpoint, model: TrainingModel) -> None:
    """Raise `CheckpointError` unless the stored tensors fill the multi-token-prediction layers of `model`."""
    state, stored = model.state_dict(), checkpoint.stored
    tensors = {name: state[name] for name in parts_of_checkpoint(state, checkpoint.spec).mtp}
    chosen = {name: stored[name] for name in parts_of_checkpoint(stored, checkpoint.spec).mtp}
    try:
        _places(checkpoint, chosen, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; mtp=False loads the model without multi-token prediction") from None


def _check_copy(name: str, stored: StoredTensor, original: str, loaded: Tensor) -> None:
    """Raise `CheckpointError` if the second copy of a tied tensor differs from the copy that was loaded."""
    if loaded.is_meta:
        return
    for _, value in stream({name: stored}):
        if not torch.equal(value.to(loaded.device, loaded.dtype), loaded):
            rule = f"differs from {original}, but must be a copy of it, as tie_word_embeddings is true"
            raise CheckpointError(f"{stored.file}: {name} {rule}")
